//! The cgroup hierarchies that are mounted here, and what differs between the two versions of them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::limits::{self, Setting};
use crate::error::{Context, Error, Kind, Result};

/// Controllers that our cgroups use where the unified hierarchy has them.
const DELEGATED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hierarchy {
    /// Version 2. Beside older hierarchies it has few controllers or none, and only groups processes.
    Unified { root: PathBuf },
    /// Version 1, with its controllers; `name=systemd` counts as one.
    Old { root: PathBuf, controllers: Vec<String> },
}

/// All hierarchies in the mount namespace of this process.
pub(super) fn mounted() -> Result<Vec<Hierarchy>> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(MOUNTS).context(|| format!("Could not read {MOUNTS}"))?;
    let hierarchies = parse(&text);
    if hierarchies.is_empty() {
        return Err(Error::new(
            Kind::FailedPrecondition,
            "No cgroup filesystem is mounted: mount one at /sys/fs/cgroup",
        ));
    }
    Ok(hierarchies)
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for hierarchy in mountinfo.lines().filter_map(parse_line) {
        let same = |known: &Hierarchy| known.controllers() == hierarchy.controllers();
        if !hierarchies.iter().any(same) {
            hierarchies.push(hierarchy);
        }
    }
    hierarchies
}

/// `31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup cgroup rw,memory`
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let root = PathBuf::from(unescape(mount.split(' ').nth(4)?));
    let mut fields = filesystem.split(' ');
    let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
    match kind {
        "cgroup2" => Some(Hierarchy::Unified { root }),
        "cgroup" => {
            let is_controller =
                |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix");
            let controllers = options.split(',').filter(is_controller).map(str::to_owned).collect();
            Some(Hierarchy::Old { root, controllers })
        }
        _ => None,
    }
}

/// The kernel writes blanks in paths as octal.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Whether a process is in the cgroup `path` or below it.
pub(super) fn is_populated(path: &Path) -> bool {
    // No such cgroup: no process.
    let Ok(entries) = fs::read_dir(path) else { return false };
    let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    !procs.trim().is_empty()
        || entries.flatten().filter(is_directory).any(|entry| is_populated(&entry.path()))
}

impl Hierarchy {
    pub(super) fn root(&self) -> &Path {
        let (Hierarchy::Unified { root } | Hierarchy::Old { root, .. }) = self;
        root
    }

    /// Empty for the unified hierarchy, which there is one of.
    fn controllers(&self) -> &[String] {
        match self {
            Hierarchy::Unified { .. } => &[],
            Hierarchy::Old { controllers, .. } => controllers,
        }
    }

    fn has(&self, name: &str) -> bool {
        self.controllers().iter().any(|controller| controller == name)
    }

    /// Makes the cgroup `path`, or takes the one that is there.
    pub(super) fn make(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        if self.has("cpuset") { inherit_cpuset(path) } else { Ok(()) }
    }

    /// Lets the cgroups below `path` have controllers. What can't be delegated shows when a limit is set; a parent that
    /// has processes of its own refuses all of it, and that is its owner's choice.
    pub(super) fn delegate(&self, path: &Path) {
        let Hierarchy::Unified { .. } = self else { return };
        let available = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        for name in available.split_whitespace().filter(|name| DELEGATED.contains(name)) {
            if let Err(error) = write(&path.join("cgroup.subtree_control"), &format!("+{name}")) {
                log::debug!("Could not delegate {name} below cgroup {}: {error}", path.display());
            }
        }
    }

    /// Sets the limits that this hierarchy has controllers for.
    pub(super) fn limit(&self, path: &Path, resources: &LinuxResources) -> Result<()> {
        let settings = match self {
            Hierarchy::Unified { .. } => limits::unified(resources),
            Hierarchy::Old { .. } => limits::old(resources, |name| self.has(name)),
        };
        apply(path, settings)
    }
}

/// The kernel checks each value against others that are set. What it refuses first it may take once those have changed:
/// a limit on memory and swap together must never be below the one on memory alone, not even in between.
fn apply(path: &Path, settings: Vec<Setting>) -> Result<()> {
    let mut left = settings;
    loop {
        let count = left.len();
        let mut refused = Vec::new();
        let mut last = None;
        for setting in left {
            match write(&path.join(setting.file), &setting.value) {
                Ok(()) => {}
                // The controller is not there: disabled in the kernel, or not delegated to us.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    last = Some(error);
                    refused.push(setting);
                }
            }
        }
        match (last, refused.first()) {
            (Some(error), Some(setting)) if refused.len() == count => {
                let Setting { file, value } = setting;
                let text = format!("Could not set {file} of cgroup {} to {value}", path.display());
                return Err(Error::caused(Kind::InvalidArgument, text, error));
            }
            (Some(_), _) => left = refused,
            (None, _) => return Ok(()),
        }
    }
}

/// A new cgroup of the old cpuset controller takes no process before it has processors and memory nodes.
fn inherit_cpuset(path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let Some(parent) = path.parent().map(|parent| parent.join(file)) else { continue };
        if own.exists() && fs::read_to_string(&own)?.trim().is_empty() {
            write(&own, fs::read_to_string(parent)?.trim())?;
        }
    }
    Ok(())
}

/// Never makes a file: on a cgroup filesystem that is impossible, and anywhere else wrong.
fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hierarchies_are_found_once() {
        let text = "\
            31 23 0:28 / /sys/fs/cgroup rw,relatime shared:2 - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw shared:3 master:1 - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
            52 31 0:29 / /mnt/with\\040blank rw - cgroup cgroup rw,cpu,cpuacct\n";
        let old = |root: &str, controllers: &[&str]| Hierarchy::Old {
            root: root.into(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        };
        let expected = [
            old("/sys/fs/cgroup/cpu,cpuacct", &["cpu", "cpuacct"]),
            old("/sys/fs/cgroup/systemd", &["name=systemd"]),
            Hierarchy::Unified { root: "/sys/fs/cgroup/unified".into() },
        ];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn a_limit_without_its_controller_is_skipped_and_a_refused_one_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let setting = |file| Setting { file, value: "7".into() };
        fs::write(temp.path().join("pids.max"), "").unwrap();
        apply(temp.path(), vec![setting("memory.max"), setting("pids.max")]).unwrap();
        assert_eq!(fs::read_to_string(temp.path().join("pids.max")).unwrap(), "7");
        assert!(!temp.path().join("memory.max").exists());
        fs::create_dir(temp.path().join("cpu.max")).unwrap();
        let error = apply(temp.path(), vec![setting("pids.max"), setting("cpu.max")]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("cpu.max"), "{error}");
    }
}
