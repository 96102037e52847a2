//! The group above all containers' groups.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use log::warn;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::Cgroup;
use super::files::{remove_tree, write};
use crate::error::{Context as _, Error, Kind, Result};

/// The group of all containers.
#[derive(Debug)]
pub struct Hierarchy {
    path: PathBuf,
}

impl Hierarchy {
    /// Makes `microvm` below the mount point of cgroup2 and enables every controller there is for its groups.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if `root` is no cgroup2; if the group cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let kind =
            statfs(root).context(|| format!("Could not look at {}", root.display()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            let text = format!("{} is no cgroup2 file system: mount one there first", root.display());
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        let path = root.join("microvm");
        make_dir(&path).context(|| format!("Could not make cgroup {}", path.display()))?;
        enable_controllers(root);
        enable_controllers(&path);
        Ok(Self { path })
    }

    /// Makes the group `id`. One that a failed removal has left is made anew if no process is in it.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`] if processes are in it; [`Kind::InvalidArgument`] for an id that is no file name.
    pub fn create(&self, id: &str) -> Result<Cgroup> {
        if id.is_empty() || id.starts_with('.') || id.contains('/') {
            let text = format!(
                "Could not name a cgroup {id:?}: an id is a file name that does not begin with a dot"
            );
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        let path = self.path.join(id);
        if path.is_dir() {
            remove_tree(&path).map_err(|error| {
                Error::caused(Kind::AlreadyExists, format!("Cgroup {} is in use", path.display()), error)
            })?;
        }
        let make = || fs::create_dir(&path).and_then(|()| File::open(&path));
        let directory = make().context(|| format!("Could not make cgroup {}", path.display()))?;
        Ok(Cgroup::new(path, directory))
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// One by one: the kernel refuses a whole list for one controller that is in use elsewhere.
fn enable_controllers(group: &Path) {
    let offered = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in offered.split_whitespace() {
        if let Err(error) = write(&group.join("cgroup.subtree_control"), &format!("+{controller}")) {
            warn!("Could not enable cgroup controller {controller} in {}: {error}", group.display());
        }
    }
}
