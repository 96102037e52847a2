//! How each kind of resource is undone: idempotent, and a resource that is gone is a success. Called by the ledger only.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{Resource, cgroup, hook, process, tree};
use crate::error::{Context, Result};
use crate::{images, network, snapshot};

/// More mounts than anybody stacks on one path; a guard against going round for ever.
const MAX_STACKED: usize = 1024;

pub(super) fn undo(resource: &Resource) -> Result<()> {
    let undone = match resource {
        Resource::Directory(path) => tree::remove(path),
        Resource::File(path) => remove_file(path),
        Resource::Mount(path) => unmount(path),
        Resource::Cgroup(path) => cgroup::remove(path),
        Resource::Process { pid, start_time, .. } => process::kill(*pid, *start_time),
        Resource::Poststop(hook) => {
            hook::run(hook);
            return Ok(());
        }
        Resource::Tap { netns, name } => return network::remove_tap(netns, name),
        Resource::Redirect { netns, device } => return network::remove_redirect(netns, device),
        Resource::Netns(path) => return network::remove_netns(path),
        Resource::Snapshot(path) => return snapshot::clear_unfinished(path),
        Resource::Lease { address, namespace, id } => return images::release_lease(address, namespace, id),
    };
    undone.context(|| format!("Could not remove {resource}"))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Detaches, because whoever still holds a file of the mount must not keep the sandbox from going.
fn unmount(path: &Path) -> io::Result<()> {
    for _ in 0..MAX_STACKED {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: not a mount point.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("new mounts keep appearing on it"))
}
