//! The kernel's file systems that the guest needs, and what has to be in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::error::{Context as _, Result};

struct Entry {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NOTHING: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// In this order: later ones lie in earlier ones.
const TABLE: &[Entry] = &[
    Entry { kind: "proc", at: "/proc", flags: NOTHING, data: "" },
    Entry { kind: "sysfs", at: "/sys", flags: NOTHING, data: "" },
    Entry { kind: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, data: "mode=755" },
    Entry { kind: "devpts", at: "/dev/pts", flags: MsFlags::MS_NOSUID, data: "gid=5,mode=620,ptmxmode=666" },
    Entry { kind: "tmpfs", at: "/dev/shm", flags: NO_DEVICES, data: "mode=1777" },
    Entry { kind: "mqueue", at: "/dev/mqueue", flags: NOTHING, data: "" },
    Entry { kind: "tmpfs", at: "/run", flags: NO_DEVICES, data: "mode=755" },
    Entry { kind: "tmpfs", at: "/tmp", flags: NO_DEVICES, data: "mode=1777" },
    Entry { kind: "cgroup2", at: "/sys/fs/cgroup", flags: NOTHING, data: "nsdelegate" },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

pub(super) fn mount_all() -> Result<()> {
    for Entry { kind, at, flags, data } in TABLE {
        fs::create_dir_all(at).context(|| format!("Could not make {at}"))?;
        mount(Some(*kind), *at, Some(*kind), *flags, Some(*data))
            .context(|| format!("Could not mount {kind} on {at}"))?;
    }
    for (target, link) in LINKS {
        if fs::symlink_metadata(link).is_err() {
            symlink(target, link).context(|| format!("Could not make the link {link}"))?;
        }
    }
    Ok(())
}

/// Lets the groups below `root` have each controller the kernel offers. PID 1 may stay in the root group: only
/// that one may hold processes and delegate as well.
pub(super) fn enable_controllers(root: &Path) -> Result<()> {
    let offered = root.join("cgroup.controllers");
    let offered = fs::read_to_string(&offered).context(|| format!("Could not read {}", offered.display()))?;
    for controller in offered.split_ascii_whitespace() {
        // One at a time: a single refusal would undo them all.
        if let Err(error) = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}")) {
            log::warn!("Containers do without the cgroup controller {controller}: {error}");
        }
    }
    Ok(())
}
