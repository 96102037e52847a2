//! New volumes for a container that came with a snapshot: mounted in the place of the old ones in its mount namespace. Called by
//! [`Container::rebind`](super::super::Container::rebind) on a thread of its own, which is never used for anything else.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::mounts::Pending;
use super::root::Root;
use crate::container::plan::Mount;
use crate::error::{Context as _, Result};

/// Leaves the calling thread in the mount namespace of the process `pidfd`.
pub(in crate::container) fn rebind(pidfd: impl AsFd, mounts: &[Mount]) -> Result<()> {
    let pending = mounts.iter().map(Pending::take).collect::<Result<Vec<_>>>()?;
    // A thread that shares its root and working directory with others may not change its mount namespace.
    unshare(CloneFlags::CLONE_FS).context(|| "Could not give a thread a root of its own")?;
    setns(pidfd, CloneFlags::CLONE_NEWNS).context(|| "Could not join the container's mount namespace")?;
    let root = Root::open(Path::new("/")).context(|| "Could not open the container's root")?;
    mounts.iter().zip(&pending).try_for_each(|(mount, pending)| {
        take_off(&mount.target)?;
        pending.put(&root)
    })
}

/// Takes off what is mounted at `target`. The files of the old pod are gone, so a look-up of the mount point would end
/// in EIO at the old mount; umount alone does not look into what it takes off.
fn take_off(target: &str) -> Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Nothing is mounted there, or there is no such place: it is made then.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        failed => failed.context(|| format!("Could not take the old volume off {target}")),
    }
}
