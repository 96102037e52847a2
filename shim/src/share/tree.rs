//! Mounts that no path leads to yet: made, given their flags, and only then attached, so that every copy of them
//! has the flags (a bind mount that is remounted read-only leaves the daemon's copy writable). Called by `share`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, open};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// What mount(2) takes of options, in bytes, with the zero at their end: a page, the smallest that any machine has.
pub(crate) const OPTIONS: usize = 4096;

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
        match Self::overlay_in_steps(&by_descriptor(lowers)?, flags)? {
            Some(tree) => Ok(tree),
            None => Self::overlay_at_once(lowers, flags),
        }
    }

    /// Names the layers one by one, of which there may be any number. None before Linux 6.7, which can't.
    fn overlay_in_steps(layers: &[(String, OwnedFd)], flags: &[&str]) -> io::Result<Option<Self>> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", "overlay")?;
        for flag in flags {
            match flag.split_once('=') {
                Some((key, value)) => fsconfig_set_string(context.as_fd(), key, value)?,
                None => fsconfig_set_flag(context.as_fd(), *flag)?,
            }
        }
        for (index, (name, _)) in layers.iter().enumerate() {
            match fsconfig_set_string(context.as_fd(), "lowerdir+", name.as_str()) {
                Err(rustix::io::Errno::INVAL) if index == 0 => return Ok(None),
                result => result.map_err(|error| explained(context.as_fd(), error))?,
            }
        }
        fsconfig_set_flag(context.as_fd(), "ro")?;
        fsconfig_create(context.as_fd()).map_err(|error| explained(context.as_fd(), error))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
        Ok(Some(Self(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)))
    }

    /// As mount(2) makes it, which takes a page of options, enough for two hundred layers, and a place. The place is any
    /// directory, in a mount namespace that ends at once: what is kept is a copy, which no path ever led to.
    fn overlay_at_once(lowers: &[&Path], flags: &[&str]) -> io::Result<Self> {
        let mount = || -> io::Result<Self> {
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
            let nothing = None::<&str>;
            nix::mount::mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
            // Opened only here: an overlay takes layers of its own mount namespace.
            let layers = by_descriptor(lowers)?;
            let names: Vec<_> = layers.iter().map(|(name, _)| name.as_str()).collect();
            let options = [&[format!("lowerdir={}", names.join(":")).as_str()], flags].concat().join(",");
            if options.len() >= OPTIONS {
                return Err(io::Error::other(format!(
                    "{} layers, which need Linux 6.7 or later",
                    lowers.len()
                )));
            }
            let how = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            nix::mount::mount(Some("overlay"), lowers[0], Some("overlay"), how, Some(options.as_str()))?;
            Self::bind(lowers[0])
        };
        // A thread of its own, because the namespace is the calling thread's from then on.
        let mounted = std::thread::scope(|scope| scope.spawn(mount).join());
        mounted.unwrap_or_else(|_| Err(io::Error::other("the thread that mounts the layers panicked")))
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

/// Opens directories and answers short names for them, which hold as long as they are open.
///
/// # Errors
/// The first that can't be opened, named.
pub(crate) fn by_descriptor(paths: &[&Path]) -> io::Result<Vec<(String, OwnedFd)>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &&Path| {
        let directory = open(*path, flags, Mode::empty()).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Ok((format!("/proc/self/fd/{}", directory.as_raw_fd()), directory))
    };
    paths.iter().map(open).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// On this kernel as on one before 6.7.
    #[test]
    fn many_layers_are_one_tree_in_both_ways() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let layers: Vec<_> = (0..100).map(|number| dir.path().join(format!("{number:0>60}"))).collect();
        for (number, layer) in layers.iter().enumerate() {
            std::fs::create_dir(layer).unwrap();
            std::fs::write(layer.join(number.to_string()), "").unwrap();
            std::fs::write(layer.join("all"), number.to_string()).unwrap();
        }
        let lowers: Vec<&Path> = layers.iter().map(AsRef::as_ref).collect();
        let trees = [Tree::overlay(&lowers, &[]), Tree::overlay_at_once(&lowers, &["userxattr"])];
        for tree in trees {
            let tree = tree.unwrap();
            let root = format!("/proc/self/fd/{}", tree.0.as_raw_fd());
            assert_eq!(std::fs::read_to_string(format!("{root}/all")).unwrap(), "0");
            assert_eq!(std::fs::read_dir(&root).unwrap().count(), 101);
            let error = std::fs::write(format!("{root}/new"), "").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
        let many = vec![lowers[0]; 300];
        let error = Tree::overlay_at_once(&many, &[]).unwrap_err().to_string();
        assert!(error.contains("300 layers"), "{error}");
    }
}
