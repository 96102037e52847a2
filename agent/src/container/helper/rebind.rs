//! New volumes for a container that came with a snapshot: mounted over the old ones in its mount namespace. Called by
//! [`Container::rebind`](super::super::Container::rebind) on a thread of its own, which is never used for anything else.

use std::os::fd::AsFd;
use std::path::Path;

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
    pending.iter().try_for_each(|pending| pending.put(&root))
}
