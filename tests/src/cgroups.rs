//! The machine's cgroup hierarchies, v1 or v2: where they are mounted, and groups made in and removed from them. Called
//! by the test host and the leak check.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub at: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub kind: String,
    /// The mount options that select it: controllers or `name=…`, empty for v2.
    pub options: String,
}

/// The hierarchies mounted here.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("Could not read /proc/self/mountinfo")?;
    Ok(parse_mounts(&table))
}

fn parse_mounts(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let mut fields = filesystem.split(' ');
        let (Some(kind), Some(_), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let Some(at) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let options: Vec<&str> = options
            .split(',')
            .filter(|option| kind == "cgroup" && *option != "rw" && *option != "ro")
            .collect();
        found.push(Hierarchy { at, kind: kind.to_owned(), options: options.join(",") });
    }
    found
}

/// This process' own group in every hierarchy mounted here.
pub fn own_folders() -> Result<Vec<PathBuf>> {
    let own = fs::read_to_string("/proc/self/cgroup").context("Could not read /proc/self/cgroup")?;
    let mut folders = Vec::new();
    for hierarchy in hierarchies()? {
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            (controllers == hierarchy.options).then(|| path.trim_start_matches('/').to_owned())
        });
        if let Some(path) = path {
            folders.push(hierarchy.at.join(path));
        }
    }
    Ok(folders)
}

/// Makes one group. A v1 cpuset takes no process before it has processors and memory nodes: they are copied from its
/// parent, and from it to the groups below.
pub fn create(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("Could not make the cgroup {}", group.display()))?;
    let Some(parent) = group.parent() else { return Ok(()) };
    if group.join("cgroup.clone_children").exists() && group.join("cpuset.cpus").exists() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read(parent.join(file))?;
            fs::write(group.join(file), value)
                .with_context(|| format!("Could not set {file} of the cgroup {}", group.display()))?;
        }
        fs::write(group.join("cgroup.clone_children"), "1")?;
    }
    Ok(())
}

/// Moves the calling process into a group.
pub fn join(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
        .with_context(|| format!("Could not enter the cgroup {}", group.display()))
}

/// Removes a group and all below it, waiting until `deadline` for groups that are still busy.
pub fn remove_tree(group: &Path, deadline: Instant) -> Result<()> {
    let Ok(entries) = fs::read_dir(group) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove_tree(&path, deadline)?;
        }
    }
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error)
                    .with_context(|| format!("Could not remove the cgroup {}", group.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_table_gives_v1_controllers_names_and_v2() {
        let table = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                     40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:3 - cgroup cgroup rw,name=systemd\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n\
                     42 31 0:39 / /tmp rw - tmpfs tmpfs rw\n";
        let options: Vec<String> = parse_mounts(table).into_iter().map(|found| found.options).collect();
        assert_eq!(options, ["cpu,cpuacct", "name=systemd", ""]);
    }
}
