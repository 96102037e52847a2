//! Removes a directory tree without ever leaving it: neither through a symbolic link nor into a mount below. What a
//! mount shows may be a volume or an image, and those must outlive every sandbox. Called by the ledger only.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Each level holds one file descriptor open. Nothing of ours is nested more than a few levels.
const MAX_DEPTH: u32 = 128;

/// Removes `path` and everything below it. Success if it is not there. Fails with `EXDEV` at a mount, before
/// anything in that mount is touched.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = match open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened?,
    };
    remove_entry(parent.as_fd(), &CString::new(name.as_bytes())?, 0)
}

fn remove_entry(parent: BorrowedFd<'_>, name: &CStr, depth: u32) -> io::Result<()> {
    let removed = match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {
            match open_below(parent, name) {
                Ok(dir) => remove_content(dir, depth)?,
                Err(Errno::ENOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            unlinkat(parent, name, UnlinkatFlags::RemoveDir)
        }
        removed => removed,
    };
    match removed {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_content(dir: OwnedFd, depth: u32) -> io::Result<()> {
    if depth == MAX_DEPTH {
        return Err(Errno::ELOOP.into());
    }
    let mut dir = Dir::from_fd(dir)?;
    // Collected first: what a directory stream yields after a removal is unspecified.
    let names: Vec<CString> =
        dir.iter().map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect::<Result<_, _>>()?;
    let own = [c".", c".."];
    for name in names.iter().filter(|name| !own.contains(&name.as_c_str())) {
        // SAFETY: `dir` is open until the end of this function.
        let fd = unsafe { BorrowedFd::borrow_raw(dir.as_raw_fd()) };
        remove_entry(fd, name, depth + 1)?;
    }
    Ok(())
}

/// Opens the directory `name` unless it is a link or a mount point.
fn open_below(parent: BorrowedFd<'_>, name: &CStr) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(parent, name, how)
}
