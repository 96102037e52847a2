//! Gets PID 1 out of the initramfs's root mount.

use std::fs;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::error::{Context as _, Result};

const NEW_ROOT: &str = "/newroot";

/// Puts a second mount of the root file system over the first one. The kernel lets nobody pivot away from the first,
/// the initramfs's own, and each container has to. Nothing is copied.
pub(super) fn leave_initramfs() -> Result<()> {
    fs::create_dir_all(NEW_ROOT).context(|| format!("Could not make {NEW_ROOT}"))?;
    let none = None::<&str>;
    mount(Some("/"), NEW_ROOT, none, MsFlags::MS_BIND, none)
        .context(|| format!("Could not bind the root file system to {NEW_ROOT}"))?;
    chdir(NEW_ROOT).context(|| format!("Could not enter {NEW_ROOT}"))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)
        .context(|| format!("Could not move {NEW_ROOT} over the root"))?;
    chroot(".").and_then(|()| chdir("/")).context(|| "Could not make the moved mount the root directory")
}
