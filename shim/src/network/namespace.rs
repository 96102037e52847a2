//! Work inside a network namespace, and namespaces of our own for sandboxes that CNI did not give one.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};
use rtnetlink::Handle;

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// Longest wait for the kernel's answers to one piece of work. They take microseconds, unless another process
/// holds the kernel's one lock for all network configuration.
const DEADLINE: Duration = Duration::from_secs(10);

/// `NSFS_MAGIC` of the kernel's `magic.h`: the filesystem that namespace files live on.
const NSFS: FsType = FsType(0x6e73_6673);

/// Runs `work` on a thread of its own inside `netns`. `NotFound` when there is no such namespace.
pub(super) fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = open(netns)?;
    let entered = || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .context(|| format!("Could not enter network namespace {}", netns.display()))?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|_| {
        Err(Error::new(Kind::Internal, format!("The thread inside {} panicked", netns.display())))
    })
}

/// Runs `work` with a netlink connection inside `netns`. `NotFound` when there is no such namespace.
pub(super) fn within<T: Send>(netns: &Path, work: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
    inside(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context(|| "Could not start a runtime for netlink".into())?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()
                .context(|| format!("Could not open a netlink socket in {}", netns.display()))?;
            tokio::spawn(connection);
            tokio::time::timeout(DEADLINE, work(handle)).await.unwrap_or_else(|_| {
                let text = format!("The kernel did not configure {} within {DEADLINE:?}", netns.display());
                Err(Error::new(Kind::DeadlineExceeded, text))
            })
        })
    })
}

/// Like [`within`], for undoing: a namespace that is gone took everything in it along, which is success.
pub(super) fn undo_within(netns: &Path, work: impl AsyncFnOnce(Handle) -> Result<()> + Send) -> Result<()> {
    match within(netns, work) {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}

/// Opens the namespace file, unless it is of the namespace that the shim is in: that is the host's, and what happens to
/// a pod's devices must never happen to the host's. A path that exists but is no namespace is what CNI leaves between unmounting and
/// unlinking it, and so is no namespace either.
fn open(netns: &Path) -> Result<File> {
    let missing = || format!("There is no network namespace at {}", netns.display());
    let file = File::open(netns).map_err(|error| {
        let gone = matches!(error.kind(), ErrorKind::NotFound) || error.raw_os_error() == Some(libc::ESRCH);
        Error::caused(if gone { Kind::NotFound } else { Kind::Internal }, missing(), error)
    })?;
    let kind = fstatfs(&file).context(missing)?.filesystem_type();
    if kind != NSFS {
        return Err(Error::new(Kind::NotFound, missing()));
    }
    let identity = |data: std::fs::Metadata| (data.dev(), data.ino());
    let own = std::fs::metadata("/proc/self/ns/net").map(identity).context(missing)?;
    if file.metadata().map(identity).context(missing)? == own {
        let text = format!(
            "{} is the host's own network; a pod that is a virtual machine can't have hostNetwork",
            netns.display()
        );
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    Ok(file)
}

/// Makes a new network namespace, its loopback up, and keeps it at `path`.
///
/// # Errors
/// When `path` exists already, or the namespace can't be made. What was made is in the ledger.
pub fn create_netns(path: &Path, ledger: &Ledger) -> Result<()> {
    let what = || format!("Could not make a network namespace at {}", path.display());
    ledger.claim(Resource::Netns(path.to_owned()))?;
    OpenOptions::new().write(true).create_new(true).open(path).context(what)?;
    let inside = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or(Err(nix::errno::Errno::EIO))
        .context(what)?;
    within(path, async |handle| {
        let up = rtnetlink::LinkUnspec::new_with_name("lo").up().build();
        handle.link().set(up).execute().await.context(|| format!("Could not set lo up in {}", path.display()))
    })
}

/// Removes a namespace that [`create_netns`] made. Its absence is success.
///
/// # Errors
/// When it can't be unmounted or unlinked.
pub fn remove_netns(path: &Path) -> Result<()> {
    let what = || format!("Could not remove network namespace {}", path.display());
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
            Err(error) => return Err(error).context(what),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(what),
        _ => Ok(()),
    }
}
