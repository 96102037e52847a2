//! The description of a saved machine, made one of this sandbox: every path is ours, what the machine was stays. The
//! text is hostile: it comes from a snapshot of anybody's. Pure; called by this VMM's restore and by the fuzzer.
//!
//! What is known is checked against the machine that the manifest describes, or replaced. What is not known survives
//! as long as it can be no device and names no path.

use serde_json::{Map, Value, json};

use super::Files;
use super::config;
use crate::error::{Error, Kind, Result};
use crate::vm::{FsDevice, Machine, NetDevice};

/// Longest description that is read; ours have 2 KiB.
pub(super) const MOST: usize = 1 << 20;

/// Parts of a machine of ours.
const PARTS: &[&str] = &[
    "cpus",
    "memory",
    "payload",
    "net",
    "rng",
    "fs",
    "serial",
    "console",
    "vsock",
    "platform",
    "landlock_enable",
    "landlock_rules",
];

/// Memory that comes and goes, which no pod has.
const HOTPLUG: &[&str] = &["hotplug_size", "hotplugged_size"];

/// `saved`, as the machine that it describes goes on here.
///
/// # Errors
/// `InvalidArgument` naming what can't be restored.
pub(super) fn rewritten(saved: &[u8], machine: &Machine, files: &Files, landlock: bool) -> Result<Vec<u8>> {
    let mut part = Part::parse(saved)?;
    part.no_other_devices()?;
    part.within("cpus", |cpus| {
        cpus.equals("boot_vcpus", machine.vcpus.into())?;
        cpus.equals("max_vcpus", machine.vcpus.into())
    })?;
    part.within("memory", |memory| ram(memory, machine))?;
    part.within("payload", |payload| {
        payload.set("kernel", path(&machine.kernel)?);
        payload.set("initramfs", path(&machine.initramfs)?);
        Ok(())
    })?;
    part.each("net", machine.nics.len(), |number, net| network(net, &machine.nics[number]))?;
    let mut shares: Vec<&FsDevice> = machine.shares.iter().collect();
    part.each("fs", machine.shares.len(), |_, fs| share(fs, &mut shares))?;
    part.within("rng", |rng| {
        rng.set("src", "/dev/urandom");
        Ok(())
    })?;
    part.within("vsock", |vsock| {
        vsock.set("socket", path(&files.vsock())?);
        Ok(())
    })?;
    part.within("console", |console| printer(console, "Tty"))?;
    part.within("serial", |serial| printer(serial, "Null"))?;
    part.set("landlock_enable", landlock);
    part.set("landlock_rules", if landlock { json!(config::rules(files)) } else { Value::Null });
    let ours = ours(machine, files)?;
    part.no_path_but(&ours)?;
    serde_json::to_vec_pretty(&part.map).map_err(|error| {
        Error::caused(Kind::Internal, "Could not write the description of the machine", error)
    })
}

/// RAM is one zone, the file that the snapshot's RAM was laid into.
fn ram(memory: &mut Part, machine: &Machine) -> Result<()> {
    memory.equals("size", 0)?;
    memory.lacks(HOTPLUG)?;
    memory.each("zones", 1, |_, zone| {
        zone.equals("size", machine.memory)?;
        zone.lacks(HOTPLUG)?;
        zone.set("file", path(&machine.ram)?);
        zone.set("shared", true);
        Ok(())
    })
}

fn network(net: &mut Part, nic: &NetDevice) -> Result<()> {
    let mac = net.map.get("mac").and_then(Value::as_str).unwrap_or_default();
    if !mac.eq_ignore_ascii_case(&nic.mac) {
        return Err(net.problem("mac", &format!("has {mac:?}, its manifest has {:?}", nic.mac)));
    }
    net.lacks(&["ip", "mask", "fds", "vhost_user", "vhost_socket"])?;
    // The old tap's; the VMM asks the new one.
    net.map.remove("host_mac");
    net.set("tap", nic.tap.as_str());
    Ok(())
}

/// A virtio-fs device becomes one of `left`, the shares that have none yet.
fn share(fs: &mut Part, left: &mut Vec<&FsDevice>) -> Result<()> {
    let tag = fs.map.get("tag").and_then(Value::as_str).unwrap_or_default();
    let Some(number) = left.iter().position(|share| share.tag == tag) else {
        return Err(
            fs.problem("tag", &format!("has {tag:?}, which is no share of this pod, or has been before"))
        );
    };
    fs.set("socket", path(&left.remove(number).socket)?);
    Ok(())
}

/// A device that prints, which goes on to print where ours do. One that was off stays off.
fn printer(device: &mut Part, mode: &str) -> Result<()> {
    if device.map.get("mode").and_then(Value::as_str) != Some("Off") {
        device.set("mode", mode);
    }
    device.map.remove("file");
    device.map.remove("socket");
    Ok(())
}

/// Every path that may be in the new description.
fn ours(machine: &Machine, files: &Files) -> Result<Vec<String>> {
    let mut all = vec!["/dev/urandom".to_owned()];
    for own in [&machine.kernel, &machine.initramfs, &machine.ram, &files.vsock(), &files.state()] {
        all.push(path(own)?);
    }
    for share in &machine.shares {
        all.push(path(&share.socket)?);
    }
    Ok(all)
}

fn path(path: &std::path::Path) -> Result<String> {
    config::utf8(path).map(str::to_owned)
}

/// An object of the description, and where in it that is.
#[derive(Debug)]
struct Part {
    at: String,
    map: Map<String, Value>,
}

impl Part {
    fn parse(saved: &[u8]) -> Result<Self> {
        let about = "The snapshot's description of its machine is no JSON object";
        if saved.len() > MOST {
            let text = format!("The snapshot's description of its machine has more than {MOST} bytes");
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        match serde_json::from_slice(saved) {
            Ok(Value::Object(map)) => Ok(Self { at: String::new(), map }),
            Ok(_) => Err(Error::new(Kind::InvalidArgument, about)),
            Err(error) => Err(Error::caused(Kind::InvalidArgument, about, error)),
        }
    }

    fn problem(&self, key: &str, what: &str) -> Error {
        let dot = if self.at.is_empty() { "" } else { "." };
        let key: String = key.chars().filter(|each| !each.is_control()).take(80).collect();
        let text = format!("The snapshot's machine can't be restored: {}{dot}{key} {what}", self.at);
        Error::new(Kind::InvalidArgument, text)
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.map.insert(key.to_owned(), value.into());
    }

    /// The number at `key` is `want`, to the last bit.
    fn equals(&self, key: &str, want: u64) -> Result<()> {
        match self.map.get(key) {
            Some(found) if found.as_u64() == Some(want) => Ok(()),
            Some(found @ Value::Number(_)) => {
                Err(self.problem(key, &format!("is {found}, its manifest says {want}")))
            }
            _ => Err(self.problem(key, &format!("is no number, its manifest says {want}"))),
        }
    }

    /// At none of `keys` is anything.
    fn lacks(&self, keys: &[&str]) -> Result<()> {
        let is_nothing = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_u64() == Some(0),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        match keys.iter().find(|key| !self.map.get(**key).is_none_or(is_nothing)) {
            Some(key) => Err(self.problem(key, "is there, which no pod has")),
            None => Ok(()),
        }
    }

    /// Changes the object at `key`, which must be there.
    fn within(&mut self, key: &str, change: impl FnOnce(&mut Part) -> Result<()>) -> Result<()> {
        let Some(Value::Object(map)) = self.map.remove(key) else {
            return Err(self.problem(key, "is missing or no object"));
        };
        self.change(key, map, change).map(|map| self.set(key, map))
    }

    /// Changes each of the `count` objects in the list at `key`; with none the list may be missing.
    fn each(
        &mut self,
        key: &str,
        count: usize,
        mut change: impl FnMut(usize, &mut Part) -> Result<()>,
    ) -> Result<()> {
        let list = match self.map.remove(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(self.problem(key, "is no list")),
        };
        if list.len() != count {
            return Err(self.problem(key, &format!("has {} entries, the pod has {count}", list.len())));
        }
        let mut changed = Vec::new();
        for (number, item) in list.into_iter().enumerate() {
            let name = format!("{key}[{number}]");
            let Value::Object(map) = item else { return Err(self.problem(&name, "is no object")) };
            changed.push(self.change(&name, map, |part| change(number, part))?);
        }
        if count > 0 {
            self.set(key, changed);
        }
        Ok(())
    }

    fn change(
        &self,
        name: &str,
        map: Map<String, Value>,
        change: impl FnOnce(&mut Part) -> Result<()>,
    ) -> Result<Value> {
        let at = if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) };
        let mut part = Part { at, map };
        change(&mut part)?;
        Ok(Value::Object(part.map))
    }

    /// Whatever is no part of ours must be off: lists, objects and switches are how devices are described.
    fn no_other_devices(&self) -> Result<()> {
        let mut others = self.map.iter().filter(|(key, _)| !PARTS.contains(&key.as_str()));
        match others.find(|(_, value)| !is_off(value)) {
            Some((key, _)) => Err(self.problem(key, "is a device that no pod has")),
            None => Ok(()),
        }
    }

    /// Whatever looks like a path is one of `ours`. The kernel's command line is none.
    fn no_path_but(&self, ours: &[String]) -> Result<()> {
        for (key, value) in &self.map {
            if let Some(place) = foreign_path(value, key, ours) {
                return Err(self.problem(&place, "names a file of another machine"));
            }
        }
        Ok(())
    }
}

/// Whether a value can switch no device on.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) | Value::Number(_) | Value::String(_) => true,
        Value::Bool(true) => false,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() || map.get("mode").and_then(Value::as_str) == Some("Off"),
    }
}

/// Where in `value`, which is at `at`, a path is that is none of `ours`.
fn foreign_path(value: &Value, at: &str, ours: &[String]) -> Option<String> {
    match value {
        Value::String(text) if text.contains('/') => {
            let known = at == "payload.cmdline" || ours.contains(text);
            (!known).then(|| at.to_owned())
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(number, item)| foreign_path(item, &format!("{at}[{number}]"), ours)),
        Value::Object(map) => {
            map.iter().find_map(|(key, item)| foreign_path(item, &format!("{at}.{key}"), ours))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
