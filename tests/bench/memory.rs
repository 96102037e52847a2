//! What the processes of a pod hold of the host's memory. Called by `starts.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::world::Runtime;

/// A guest's RAM, in the sandbox's directory.
const RAM: &str = "/ram/mem";
const MIB: f64 = (1 << 20) as f64;

/// Memory in MiB.
#[derive(Debug, Default)]
pub(crate) struct Held {
    guest: f64,
    vmm: f64,
    rest: f64,
}

impl Held {
    /// As samples.
    pub(crate) fn figures(&self, runtime: Runtime) -> Vec<(&'static str, f64)> {
        let all = ("pss", self.guest + self.vmm + self.rest);
        match runtime {
            Runtime::Runc => vec![all],
            Runtime::Microvm => {
                vec![all, ("pss-guest", self.guest), ("pss-vmm", self.vmm), ("pss-rest", self.rest)]
            }
        }
    }
}

/// Adds up the proportional set sizes of the shim that serves `pod_id` and of all its descendants. A guest's RAM is
/// mapped by several of them: it is left out there, and counts as what its file takes.
pub(crate) fn of_pod(pod_id: &str) -> Result<Held> {
    let all = processes()?;
    let shim =
        |process: &&Process| process.command.contains(pod_id) && process.command.contains("containerd-shim");
    let mut pods: Vec<u32> = all.values().filter(shim).map(|process| process.pid).collect();
    ensure!(!pods.is_empty(), "No shim serves the pod {pod_id}");
    loop {
        let known = pods.len();
        let children = all.values().filter(|one| pods.contains(&one.parent) && !pods.contains(&one.pid));
        pods.extend(children.map(|one| one.pid).collect::<Vec<_>>());
        if pods.len() == known {
            break;
        }
    }
    let mut held = Held { guest: touched(pod_id).unwrap_or(0.0), ..Held::default() };
    for process in pods.iter().filter_map(|pid| all.get(pid)) {
        let size = pss_without_ram(process.pid);
        if process.command.contains("qemu-system") {
            held.vmm += size;
        } else {
            held.rest += size;
        }
    }
    Ok(held)
}

/// MiB of RAM that a guest has touched; none for a pod without a guest.
pub(crate) fn touched(pod_id: &str) -> Option<f64> {
    let file = Path::new("/run/microvm/k8s.io").join(pod_id).join(RAM.trim_start_matches('/'));
    Some(fs::metadata(file).ok()?.blocks() as f64 * 512.0 / MIB)
}

#[derive(Debug)]
struct Process {
    pid: u32,
    parent: u32,
    command: String,
}

fn processes() -> Result<BTreeMap<u32, Process>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(pid) = folder.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end while we look.
        let (Ok(stat), Ok(command)) =
            (fs::read_to_string(folder.join("stat")), fs::read(folder.join("cmdline")))
        else {
            continue;
        };
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let parent = fields.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        all.insert(pid, Process { pid, parent, command });
    }
    Ok(all)
}

/// MiB of all mappings but the guest's RAM.
fn pss_without_ram(pid: u32) -> f64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    kilobytes(&maps) as f64 / 1024.0
}

fn kilobytes(maps: &str) -> u64 {
    let (mut sum, mut counts) = (0, true);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Pss:") if counts => sum += words.next().and_then(|word| word.parse().ok()).unwrap_or(0),
            // Only the head of a mapping begins with addresses.
            Some(range) if range.contains('-') => {
                counts = !line.trim_end_matches(" (deleted)").ends_with(RAM);
            }
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out_of_a_process() {
        let maps = "7f00-7f10 rw-s 00000000 00:2a 2 /run/microvm/k8s.io/p/ram/mem\nPss:   1000 kB\nPss_Dirty: 9 kB\n\
                    7f20-7f30 r--p 00000000 00:01 3 /usr/bin/qemu\nSize: 4 kB\nPss:   12 kB\n\
                    7f40-7f50 rw-p 00000000 00:00 0 \nPss:   30 kB\n";
        assert_eq!(kilobytes(maps), 42);
    }
}
