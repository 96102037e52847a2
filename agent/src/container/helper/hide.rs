//! Read-only and masked paths.

use std::io;

use rustix::fs::FileType;

use super::root::{Root, mode};
use super::tree::{self, Tree};
use crate::error::{Context as _, Result};

/// MOUNT_ATTR_RDONLY set, nothing cleared.
const READ_ONLY: (u64, u64) = (1, 0);

/// Makes each path that exists read-only, with all that is mounted below it.
pub(super) fn read_only(root: &Root, paths: &[String]) -> Result<()> {
    for path in paths {
        skip_missing(protect(root, path)).context(|| format!("Could not make {path} read-only"))?;
    }
    Ok(())
}

/// Hides each path that exists: a file behind the guest's /dev/null, a directory behind an empty one.
pub(super) fn mask(root: &Root, paths: &[String]) -> Result<()> {
    for path in paths {
        skip_missing(cover(root, path)).context(|| format!("Could not mask {path}"))?;
    }
    Ok(())
}

/// The one mount that is the root.
pub(super) fn make_read_only(root: &Root) -> io::Result<()> {
    tree::change(root.fd(), READ_ONLY, false)
}

fn protect(root: &Root, path: &str) -> io::Result<()> {
    let target = root.find(path)?;
    let tree = Tree::copy_of(&target)?;
    tree.change(READ_ONLY, true)?;
    tree.attach(&target)
}

fn cover(root: &Root, path: &str) -> io::Result<()> {
    let target = root.find(path)?;
    if !FileType::from_raw_mode(mode(&target)?).is_dir() {
        return Tree::copy("/dev/null", false)?.attach(&target);
    }
    // One inode: the directory itself.
    let tree = Tree::new("tmpfs", "tmpfs", &[("nr_inodes".to_owned(), Some("1".to_owned()))])?;
    tree.change(READ_ONLY, false)?;
    tree.attach(&target)
}

fn skip_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        result => result,
    }
}
