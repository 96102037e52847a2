//! Device nodes and links in the container's /dev.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::root::Root;
use crate::container::plan::Node;
use crate::error::{Context as _, Result};

/// In every container: name, major, minor.
const NODES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// What programs expect in any /dev.
pub(super) fn make_defaults(root: &Root) -> Result<()> {
    let dev = root.directory("/dev").context(|| "Could not make /dev")?;
    for (name, major, minor) in NODES {
        replace(&dev, name, |dev, name| {
            mknodat(dev, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(major, minor))
        })
        .context(|| format!("Could not make /dev/{name}"))?;
    }
    for (name, target) in LINKS {
        replace(&dev, name, |dev, name| symlinkat(target, dev, name))
            .context(|| format!("Could not link /dev/{name} to {target}"))?;
    }
    Ok(())
}

/// The spec's nodes, with the directories above them.
pub(super) fn make_all(root: &Root, nodes: &[Node]) -> Result<()> {
    nodes
        .iter()
        .try_for_each(|node| make(root, node).context(|| format!("Could not make device {}", node.path)))
}

fn make(root: &Root, node: &Node) -> io::Result<()> {
    let (parent, name) = root.parent(&node.path)?;
    let kind = FileType::from_raw_mode(node.kind);
    let mode = Mode::from_raw_mode(node.mode);
    replace(&parent, &name, |parent, name| {
        mknodat(parent, name, kind, mode, makedev(node.major, node.minor))
    })?;
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    chownat(&parent, name.as_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    // After chown, which clears some bits. The node is ours and new, so this follows no link.
    Ok(chmodat(&parent, name.as_str(), mode, AtFlags::empty())?)
}

/// An image's own file in its place is taken away; a directory is not.
fn replace(
    parent: &OwnedFd,
    name: &str,
    make: impl Fn(&OwnedFd, &str) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match make(parent, name) {
        Err(Errno::EXIST) => {
            unlinkat(parent, name, AtFlags::empty())?;
            make(parent, name)
        }
        result => result,
    }
}
