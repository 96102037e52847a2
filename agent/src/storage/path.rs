//! Paths of the agent's own tree: opened and made without ever following a symlink, as what lies below them may come
//! from an image, a volume or a container. Used by `storage` and by what copies files.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use super::ROOT;
use crate::error::{Context as _, Error, Kind, Result};

/// A path of a request that must lie below [`ROOT`]: absolute, without `.` and `..`; a trailing `/` is dropped.
///
/// # Errors
/// `InvalidArgument` for any other.
pub fn own(path: &str) -> Result<PathBuf> {
    let wrong = |why: &str| Err(Error::new(Kind::InvalidArgument, format!("Path {path:?} {why}")));
    if path.contains('\0') {
        return wrong("holds a NUL");
    }
    // `components` hides inner dots, so look at the text.
    if path.split('/').any(|part| part == "." || part == "..") {
        return wrong("must not hold . or ..");
    }
    let clean: PathBuf = Path::new(path).components().collect();
    match clean.strip_prefix(ROOT) {
        Ok(rest) if !rest.as_os_str().is_empty() => Ok(clean),
        _ => wrong(&format!("is not below {ROOT}")),
    }
}

/// Opens what is at a path, no component of which may be a symlink. Automounts are entered.
///
/// # Errors
/// `NotFound` if it is absent, else naming the path.
pub fn open(path: &Path, flags: OFlag) -> Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(nix::fcntl::AT_FDCWD, path, how).map_err(|error| {
        let (kind, why) = match error {
            Errno::ENOENT => (Kind::NotFound, ""),
            Errno::ELOOP => (Kind::InvalidArgument, ", which leads through a symbolic link"),
            _ => (Kind::Internal, ""),
        };
        Error::caused(kind, format!("Could not open {}{why}", path.display()), error)
    })
}

/// Opens a directory, making what is missing of it with this mode.
///
/// # Errors
/// If a component is a symlink or no directory, or cannot be made.
pub fn make_directories(path: &Path, mode: Mode) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let mut at = open(Path::new("/"), flags)?;
    let mut done = PathBuf::from("/");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        done.push(name);
        match mkdirat(&at, name, mode) {
            // Not EEXIST on a read-only file system, where what is there may do.
            Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
            Err(error) => return Err(error).context(|| format!("Could not make {}", done.display())),
        }
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        at = openat2(&at, name, how).map_err(|error| {
            let kind = if matches!(error, Errno::ELOOP | Errno::ENOTDIR) {
                Kind::InvalidArgument
            } else {
                Kind::Internal
            };
            Error::caused(
                kind,
                format!("Could not enter {}, which must be a directory", done.display()),
                error,
            )
        })?;
    }
    Ok(at)
}

/// A path that names what `fd` has open, for system calls that take none.
#[must_use]
pub fn of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
