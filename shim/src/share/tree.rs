//! Mounts that no path leads to yet: made, given their flags, and only then attached, so that every copy of them
//! has the flags (a bind mount that is remounted read-only leaves the daemon's copy writable). Called by `share`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// A detached mount, or tree of mounts. Dropping it unmounts it.
#[derive(Debug)]
pub(super) struct Tree(OwnedFd);

/// How mounts that others make below the source later travel into a tree, and its own to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Propagation {
    /// In neither direction.
    Private = libc::MS_PRIVATE,
    /// From the source.
    Slave = libc::MS_SLAVE,
    /// To every copy that others make of this tree.
    Shared = libc::MS_SHARED,
}

/// Argument of mount_setattr(2), which libc does not define for every target.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

impl Tree {
    /// A copy of the one mount that `path` is on, from `path` down.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        Self::clone_of(path, OpenTreeFlags::empty())
    }

    /// As [`Tree::bind`], with all mounts below `path`.
    pub(super) fn bind_recursive(path: &Path) -> io::Result<Self> {
        Self::clone_of(path, OpenTreeFlags::AT_RECURSIVE)
    }

    fn clone_of(path: &Path, more: OpenTreeFlags) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(Self(open_tree(CWD, path, flags | more)?))
    }

    /// A read-only overlay of `lowers`, the uppermost first, with `flags` as further options.
    pub(super) fn overlay(lowers: &[&Path], flags: &[&str]) -> io::Result<Self> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", "overlay")?;
        for flag in flags {
            match flag.split_once('=') {
                Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value)?,
                None => fsconfig_set_flag(context.as_fd(), *flag)?,
            }
        }
        set_lowers(context.as_fd(), lowers)?;
        fsconfig_set_flag(context.as_fd(), "ro")?;
        fsconfig_create(context.as_fd()).map_err(|error| explained(context.as_fd(), error))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        Ok(Self(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    /// What the tree's root is.
    pub(super) fn metadata(&self) -> io::Result<rustix::fs::Stat> {
        Ok(rustix::fs::statat(&self.0, c"", AtFlags::EMPTY_PATH)?)
    }

    /// Forbids devices and set-user-id programs on all mounts of the tree, and writing if `read_only`.
    pub(super) fn restrict(&self, read_only: bool) -> io::Result<()> {
        let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        let attr_set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only;
        self.set(&MountAttr { attr_set, ..MountAttr::default() })
    }

    /// Sets the propagation of all mounts of the tree.
    pub(super) fn propagate(&self, propagation: Propagation) -> io::Result<()> {
        self.set(&MountAttr { propagation: propagation as u64, ..MountAttr::default() })
    }

    fn set(&self, attr: &MountAttr) -> io::Result<()> {
        let empty: &CStr = c"";
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        // SAFETY: the descriptor is open, the path is a C string, and the structure is alive, of the layout that
        // the kernel documents, and has the size that is passed with it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                empty.as_ptr(),
                flags,
                std::ptr::from_ref(attr),
                size_of::<MountAttr>(),
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Attaches the tree on top of what `place` is.
    pub(super) fn attach(self, place: BorrowedFd<'_>) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&self.0, c"", place, c"", flags)?)
    }
}

/// Names the layers one by one, which Linux 6.7 and later can; older ones take a string of 255 bytes, which holds
/// about fifteen layers by the numbers of their descriptors.
fn set_lowers(context: BorrowedFd<'_>, lowers: &[&Path]) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let layers = lowers
        .iter()
        .map(|path| rustix::fs::open(*path, flags, Mode::empty()))
        .collect::<rustix::io::Result<Vec<_>>>()?;
    let names: Vec<_> = layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    for (index, name) in names.iter().enumerate() {
        match fsconfig_set_string(context, "lowerdir+", name.as_str()) {
            Err(rustix::io::Errno::INVAL) if index == 0 => {
                return fsconfig_set_string(context, "lowerdir", names.join(":").as_str()).map_err(|error| {
                    let text = format!("{} layers, which need Linux 6.7 or later", names.len());
                    if error == rustix::io::Errno::INVAL { io::Error::other(text) } else { error.into() }
                });
            }
            result => result.map_err(|error| explained(context, error))?,
        }
    }
    Ok(())
}

/// `error` with the kernel's own words, which a filesystem context holds for its owner to read.
fn explained(context: BorrowedFd<'_>, error: rustix::io::Errno) -> io::Error {
    let mut text = [0; 512];
    match rustix::io::read(context, &mut text) {
        Ok(length) if length > 0 => {
            let said = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{error}; the kernel says: {}", said.trim()))
        }
        _ => error.into(),
    }
}
