//! A mount of the spec, its options sorted into what the kernel's mount API takes.

use agent_proto::oci;
use libc::{MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE};
use serde::{Deserialize, Serialize};

use super::{absolute, refuse};
use crate::error::Result;

// linux/mount.h
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;
const ATIME: u64 = 0x70;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;
const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;

/// Options that name attributes: (name, to set, to clear first).
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", RDONLY, 0),
    ("rw", 0, RDONLY),
    ("nosuid", NOSUID, 0),
    ("suid", 0, NOSUID),
    ("nodev", NODEV, 0),
    ("dev", 0, NODEV),
    ("noexec", NOEXEC, 0),
    ("exec", 0, NOEXEC),
    ("nosymfollow", NOSYMFOLLOW, 0),
    ("symfollow", 0, NOSYMFOLLOW),
    ("nodiratime", NODIRATIME, 0),
    ("diratime", 0, NODIRATIME),
    ("relatime", 0, ATIME),
    ("norelatime", 0, 0),
    ("noatime", NOATIME, ATIME),
    ("atime", 0, ATIME),
    ("strictatime", STRICTATIME, ATIME),
    ("nostrictatime", 0, ATIME),
];

/// Options without a meaning of their own here: the default, or of a caller's file.
const IDLE: [&str; 6] = ["defaults", "remount", "silent", "loud", "nofail", "tmpcopyup"];

/// One mount.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) struct Mount {
    /// Inside the container.
    pub(in crate::container) target: String,
    pub(in crate::container) source: Source,
    /// MOUNT_ATTR_… to set, and to clear before, on the mount itself.
    pub(in crate::container) attributes: (u64, u64),
    /// The same for it and all mounts below it.
    pub(in crate::container) recursive: (u64, u64),
    /// MS_… flags, one after the other.
    pub(in crate::container) propagation: Vec<u64>,
}

/// What is mounted.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) enum Source {
    /// A file or directory of the guest.
    Bind { path: String, recursive: bool },
    /// A file system made for this mount, with its own options.
    New { kind: String, source: String, options: Vec<(String, Option<String>)> },
    /// The container's own part of the cgroup tree.
    Cgroup,
}

impl Mount {
    pub(in crate::container) fn new(mount: &oci::Mount) -> Result<Self> {
        let target = absolute(&mount.destination, "Mount")?;
        if target.split('/').all(|part| matches!(part, "" | "." | "..")) {
            return Err(refuse(format!("Could not mount on {target:?}: that is the root file system")));
        }
        let mut sorted = Sorted::default();
        for option in &mount.options {
            sorted.add(option);
        }
        let source = sorted.source(mount)?;
        let Sorted { attributes, recursive, propagation, .. } = sorted;
        Ok(Self { target, source, attributes, recursive, propagation })
    }
}

/// The options by kind.
#[derive(Default)]
struct Sorted {
    bind: Option<bool>,
    attributes: (u64, u64),
    recursive: (u64, u64),
    propagation: Vec<u64>,
    rest: Vec<(String, Option<String>)>,
}

impl Sorted {
    fn add(&mut self, option: &str) {
        match option {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            idle if IDLE.contains(&idle) => {}
            other => {
                if let Some((set, clear)) = attribute(other) {
                    merge(&mut self.attributes, set, clear);
                } else if let Some((set, clear)) = other.strip_prefix('r').and_then(attribute) {
                    merge(&mut self.recursive, set, clear);
                } else if let Some(flags) = propagation_flags(other) {
                    self.propagation.push(flags);
                } else {
                    let (key, value) =
                        other.split_once('=').map_or((other, None), |(key, value)| (key, Some(value)));
                    self.rest.push((key.to_owned(), value.map(str::to_owned)));
                }
            }
        }
    }

    fn source(&mut self, mount: &oci::Mount) -> Result<Source> {
        let bind = self
            .bind
            .or((mount.type_ == "bind").then_some(false))
            .or((mount.type_ == "rbind").then_some(true));
        if let Some((option, _)) = self.rest.iter().find(|(key, _)| key == "idmap" || key == "ridmap") {
            return Err(refuse(format!(
                "Mount {}: {option} is not supported in the guest",
                mount.destination
            )));
        }
        if let Some(recursive) = bind {
            return Ok(Source::Bind { path: absolute(&mount.source, "Bind mount source")?, recursive });
        }
        match mount.type_.as_str() {
            "" => Err(refuse(format!("Mount {} has no type", mount.destination))),
            "cgroup" | "cgroup2" => Ok(Source::Cgroup),
            kind => Ok(Source::New {
                kind: kind.to_owned(),
                source: mount.source.clone(),
                options: std::mem::take(&mut self.rest),
            }),
        }
    }
}

/// The later option wins.
fn merge(to: &mut (u64, u64), set: u64, clear: u64) {
    to.0 = (to.0 & !clear) | set;
    to.1 |= clear;
}

fn attribute(name: &str) -> Option<(u64, u64)> {
    ATTRIBUTES.iter().find(|(known, ..)| *known == name).map(|&(_, set, clear)| (set, clear))
}

fn propagation_flags(name: &str) -> Option<u64> {
    Some(match name {
        "shared" => MS_SHARED,
        "rshared" => MS_SHARED | MS_REC,
        "slave" => MS_SLAVE,
        "rslave" => MS_SLAVE | MS_REC,
        "private" => MS_PRIVATE,
        "rprivate" => MS_PRIVATE | MS_REC,
        "unbindable" => MS_UNBINDABLE,
        "runbindable" => MS_UNBINDABLE | MS_REC,
        _ => return None,
    })
}

/// Of the container's root.
pub(super) fn propagation(name: &str) -> Result<Option<u64>> {
    if name.is_empty() {
        return Ok(None);
    }
    let flags =
        propagation_flags(name).ok_or_else(|| refuse(format!("rootfsPropagation {name:?} is unknown")))?;
    Ok(Some(flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> oci::Mount {
        let mut mount = oci::Mount::new();
        (mount.destination, mount.source, mount.type_) =
            ("/mnt".to_owned(), "/src".to_owned(), kind.to_owned());
        mount.options = options.iter().map(|&option| option.to_owned()).collect();
        mount
    }

    #[test]
    fn options_are_sorted_and_the_later_wins() {
        let plan = Mount::new(&mount(
            "tmpfs",
            &["nosuid", "ro", "rw", "noatime", "size=65536k", "mode=755", "sync"],
        ))
        .unwrap();
        assert_eq!(plan.attributes.0, NOSUID | NOATIME);
        let Source::New { options, .. } = plan.source else { panic!("{:?}", plan.source) };
        let expected = [("size", Some("65536k")), ("mode", Some("755")), ("sync", None)];
        assert_eq!(options, expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned))));
    }

    #[test]
    fn binds_are_told_by_type_or_option() {
        let plan = Mount::new(&mount("none", &["rbind", "rro", "rslave"])).unwrap();
        assert_eq!(plan.source, Source::Bind { path: "/src".to_owned(), recursive: true });
        assert_eq!((plan.attributes, plan.recursive), ((0, 0), (RDONLY, 0)));
        assert_eq!(plan.propagation, [MS_SLAVE | MS_REC]);
        let plan = Mount::new(&mount("bind", &["ro"])).unwrap();
        assert_eq!(plan.source, Source::Bind { path: "/src".to_owned(), recursive: false });
        assert_eq!(Mount::new(&mount("cgroup", &["ro", "nsdelegate"])).unwrap().source, Source::Cgroup);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        let mut onto_root = mount("tmpfs", &[]);
        onto_root.destination = "/./..".to_owned();
        let mut relative = mount("bind", &[]);
        relative.source = "src".to_owned();
        for bad in [onto_root, relative, mount("", &[]), mount("bind", &["idmap"])] {
            assert!(Mount::new(&bad).is_err(), "{bad:?}");
        }
        assert_eq!(propagation("rslave").unwrap(), Some(MS_SLAVE | MS_REC));
        assert!(propagation("sideways").is_err());
    }
}
