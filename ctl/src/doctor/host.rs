//! Directories, cgroups and memory of the host. Called by `doctor`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use shim::Config;

use super::Finding;
use crate::table::size;

const CGROUPS: &str = "/sys/fs/cgroup";
/// What a pod's host cgroup limits.
const CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

pub(super) fn check(config: &Config) -> Vec<Finding> {
    vec![run_dir(config.run_dir()), store(config), memory(config), cgroups()]
}

/// The directory itself, or the nearest above it that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn run_dir(path: &Path) -> Finding {
    const CHECK: &str = "run directory";
    match statfs(&existing(path)) {
        Ok(found) if found.filesystem_type() == TMPFS_MAGIC => {
            Finding::ok(CHECK, format!("{} is on a tmpfs", path.display()))
        }
        Ok(_) => Finding::poor(
            CHECK,
            format!("{} is not on a tmpfs", path.display()),
            "what runs is written down there and must not outlive a boot of the host; set `run_dir` to a tmpfs",
        ),
        Err(error) => Finding::broken(CHECK, format!("{}: {error}", path.display()), "set `run_dir`"),
    }
}

fn store(config: &Config) -> Finding {
    const CHECK: &str = "snapshot store";
    let path = config.snapshot_store();
    let free = match statvfs(&existing(path)) {
        Ok(found) => found.blocks_available().saturating_mul(found.fragment_size()),
        Err(error) => {
            return Finding::broken(CHECK, format!("{}: {error}", path.display()), "set `snapshot_store`");
        }
    };
    let text = format!("{} has {} free", path.display(), size(free));
    let mode = path.metadata().map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        let hint = format!("guest RAM holds secrets: chmod 0700 {}", path.display());
        return Finding::poor(CHECK, format!("{} is open to other users", path.display()), hint);
    }
    if free < config.default_memory() {
        return Finding::poor(CHECK, text, "a checkpoint of even a small pod may not fit; make space");
    }
    Finding::ok(CHECK, text)
}

fn memory(config: &Config) -> Finding {
    const CHECK: &str = "memory";
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let Some(available) = kib.map(|kib| kib << 10) else {
        return Finding::poor(CHECK, "/proc/meminfo does not say what is available", "");
    };
    let text = format!("{} available, a pod gets {}", size(available), size(config.default_memory()));
    if available < config.default_memory() {
        return Finding::broken(CHECK, text, "free some, or lower `default_memory`");
    }
    Finding::ok(CHECK, text)
}

fn cgroups() -> Finding {
    const CHECK: &str = "cgroups";
    let is_v2 = |path: &str| type_of(path) == Some(CGROUP2_SUPER_MAGIC);
    if is_v2(CGROUPS) {
        let have = std::fs::read_to_string(format!("{CGROUPS}/cgroup.controllers")).unwrap_or_default();
        let have: Vec<_> = have.split_whitespace().collect();
        return lacking("version 2", |name| have.contains(&name));
    }
    let hybrid = if is_v2(&format!("{CGROUPS}/unified")) { "version 1, hybrid" } else { "version 1" };
    if type_of(CGROUPS).is_none() {
        return Finding::broken(
            CHECK,
            format!("nothing is mounted at {CGROUPS}"),
            "mount the cgroup file system",
        );
    }
    lacking(hybrid, |name| Path::new(CGROUPS).join(name).join("tasks").exists())
}

fn type_of(path: &str) -> Option<FsType> {
    statfs(path).ok().map(|found| found.filesystem_type())
}

fn lacking(version: &str, has: impl Fn(&str) -> bool) -> Finding {
    let missing: Vec<_> = CONTROLLERS.iter().copied().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return Finding::ok("cgroups", format!("{version}, with {}", CONTROLLERS.join(", ")));
    }
    let text = format!("{version}, without {}", missing.join(", "));
    Finding::poor("cgroups", text, "limits of pods on these are not enforced on the host")
}
