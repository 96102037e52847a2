//! The container's file system tree: built in the guest's tree by descriptors, then made the root.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::fs::OFlags;

use super::root::Root;
use super::tree::Tree;
use super::{devices, hide, hooks, mounts};
use crate::container::plan::Plan;
use crate::error::{Context as _, Error, Kind, Result};

/// Mounts, device nodes, sysctls and the working directory. The guest's tree is still in view, for sources and hooks.
pub(super) fn build(plan: &Plan) -> Result<Root> {
    // What a container mounts must never show in the guest; what the guest mounts later may show in the container.
    let private = plan.propagation.is_some_and(|flags| flags & libc::MS_PRIVATE != 0);
    let kind = if private { libc::MS_PRIVATE } else { libc::MS_SLAVE };
    propagate(kind | libc::MS_REC)
        .context(|| "Could not separate the container's mounts from the guest's")?;
    let root = enter_tree(plan)?;
    let later = mounts::mount_all(&root, &plan.mounts)?;
    if !plan.mounts.iter().any(mounts::replaces_dev) {
        devices::make_defaults(&root)?;
    }
    devices::make_all(&root, &plan.nodes)?;
    for (tree, attributes) in later {
        tree.change(attributes, false).context(|| "Could not make a new file system read-only")?;
    }
    set_sysctls(&plan.sysctls)?;
    root.directory(&plan.process.cwd)
        .context(|| format!("Could not make the working directory {}", plan.process.cwd))?;
    hooks::run_all(&plan.create_hooks, plan, "creating")?;
    Ok(root)
}

/// Hides what is to be hidden and makes the tree this process's root.
pub(super) fn finish(plan: &Plan, root: Root) -> Result<()> {
    hide::read_only(&root, &plan.read_only_paths)?;
    hide::mask(&root, &plan.masked)?;
    pivot(root)?;
    if let Some(flags) = plan.propagation {
        propagate(flags).context(|| "Could not set rootfsPropagation")?;
    }
    if plan.read_only {
        let root = Root::open(Path::new("/")).context(|| "Could not open the new root")?;
        hide::make_read_only(&root).context(|| "Could not make the root file system read-only")?;
    }
    Ok(())
}

/// A mount of its own on the root's place, as only a mount can become the root.
fn enter_tree(plan: &Plan) -> Result<Root> {
    let path = &plan.root;
    let failed = || format!("Could not use {} as root file system", path.display());
    let text = path.to_str().ok_or_else(|| Error::new(Kind::InvalidArgument, failed()))?;
    let tree = Tree::copy(text, true).context(failed)?;
    tree.attach(Root::open(path).context(failed)?.fd()).context(failed)?;
    Root::open(path).context(failed)
}

fn pivot(root: Root) -> Result<()> {
    let old = File::open("/").context(|| "Could not open the guest's root")?;
    fchdir(root.fd()).context(|| "Could not enter the root file system")?;
    drop(root);
    // Both on one place: the old root then lies on top of the new one and is taken off, without a directory for it.
    pivot_root(".", ".").context(|| "Could not make the file system the root (pivot_root)")?;
    fchdir(&old).context(|| "Could not enter the old root")?;
    drop(old);
    // Taking it off must not reach the guest.
    mount(None::<&str>, ".", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
        .context(|| "Could not separate the old root")?;
    umount2(".", MntFlags::MNT_DETACH).context(|| "Could not take off the old root")?;
    chdir("/").context(|| "Could not enter the new root")
}

fn propagate(flags: u64) -> nix::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::from_bits_retain(flags), None::<&str>)
}

/// Through the guest's /proc: the container's may be absent or false. The namespaces are those of this process all the same.
fn set_sysctls(sysctls: &[(String, String)]) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let all = Root::open(Path::new("/proc/sys")).context(|| "Could not open /proc/sys")?;
    for (path, value) in sysctls {
        let write = || File::from(all.open_existing(path, OFlags::WRONLY)?).write_all(value.as_bytes());
        write().context(|| format!("Could not set sysctl {path} to {value:?}"))?;
    }
    Ok(())
}
