//! The kernel's mount API, detached first: a mount gets all its attributes before anything can see it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// A detached mount; gone when dropped without [`Tree::attach`].
#[derive(Debug)]
pub(super) struct Tree {
    fd: OwnedFd,
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

impl Tree {
    /// A copy of what is mounted at `path` of the guest.
    pub(super) fn copy(path: &str, recursive: bool) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let deep = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
        Ok(Self { fd: open_tree(CWD, path, flags | deep)? })
    }

    /// A copy of what is mounted where `fd` is, with all below.
    pub(super) fn copy_of(fd: impl AsFd) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let flags = flags | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
        Ok(Self { fd: open_tree(fd, "", flags)? })
    }

    /// A new file system. The error has the kernel's own words, if it had any.
    pub(super) fn new(kind: &str, source: &str, options: &[(String, Option<String>)]) -> io::Result<Self> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        let build = || -> rustix::io::Result<OwnedFd> {
            if !source.is_empty() {
                fsconfig_set_string(&context, "source", source)?;
            }
            for (key, value) in options {
                match value {
                    Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str())?,
                    None => fsconfig_set_flag(&context, key.as_str())?,
                }
            }
            fsconfig_create(&context)?;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        };
        match build() {
            Ok(fd) => Ok(Self { fd }),
            Err(error) => Err(explain(&context, error.into())),
        }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// As [`change`].
    pub(super) fn change(&self, flags: (u64, u64), recursive: bool) -> io::Result<()> {
        change(&self.fd, flags, recursive)
    }

    /// Sets MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE, with MS_REC on all below as well.
    pub(super) fn propagate(&self, flags: u64) -> io::Result<()> {
        let attributes = Attributes { propagation: flags & !libc::MS_REC, ..Attributes::default() };
        apply(&self.fd, &attributes, flags & libc::MS_REC != 0)
    }

    /// Mounts it on what `target` is. The tree still stands for the mount afterwards.
    pub(super) fn attach(&self, target: impl AsFd) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&self.fd, "", target, "", flags)?)
    }
}

/// Clears, then sets MOUNT_ATTR_… flags, on the mount that `fd` is in or on all below it as well.
pub(super) fn change(fd: &OwnedFd, (set, clear): (u64, u64), recursive: bool) -> io::Result<()> {
    if set == 0 && clear == 0 {
        return Ok(());
    }
    // The access time flags are a field: to set one, all of it must be cleared.
    let time = if (set | clear) & 0x70 == 0 { 0 } else { 0x70 };
    apply(fd, &Attributes { set, clear: (clear & !0x70) | time, ..Attributes::default() }, recursive)
}

fn apply(fd: &OwnedFd, attributes: &Attributes, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a string of no bytes, and `attributes` is a mount_attr of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

/// The kernel's messages about a file system that could not be made; reading them never blocks.
fn explain(context: &OwnedFd, error: io::Error) -> io::Error {
    let mut words = Vec::new();
    let mut line = [0; 256];
    while let Ok(count) = nix::unistd::read(context, &mut line) {
        words.push(String::from_utf8_lossy(line.get(..count).unwrap_or_default()).trim().to_owned());
    }
    if words.is_empty() {
        error
    } else {
        io::Error::new(error.kind(), format!("{error} ({})", words.join("; ")))
    }
}
