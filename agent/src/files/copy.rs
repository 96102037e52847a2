//! kata's CopyFile: how a host without a shared file system gives the guest a file.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;

use agent_proto::agent::CopyFileRequest;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use crate::error::{Context as _, Error, Kind, Result};
use crate::storage::path;

/// Makes a directory, a symlink, or a piece of a file that appears once it is whole. Only below
/// [`ROOT`](crate::storage::ROOT).
///
/// # Errors
/// `InvalidArgument` for a path elsewhere or through a symlink, or for sizes that contradict each other.
pub fn copy(request: &CopyFileRequest) -> Result<()> {
    let at = path::own(&request.path)?;
    let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else {
        return Err(Error::new(Kind::InvalidArgument, format!("{:?} names no file", request.path)));
    };
    let mode = if request.dir_mode == 0 { 0o755 } else { request.dir_mode };
    let parent = path::make_directories(parent, Mode::from_bits_truncate(mode))?;
    let text = || format!("Could not copy to {}", at.display());
    match SFlag::from_bits_truncate(request.file_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => {
            drop(path::make_directories(&at, Mode::from_bits_truncate(0o755))?);
        }
        SFlag::S_IFLNK => {
            let target = OsStr::from_bytes(&request.data);
            // Made anew if it is there: its target is all it is.
            _ = unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir);
            symlinkat(target, &parent, name).context(text)?;
            return own(request, &parent, name).context(text);
        }
        kind if kind.is_empty() || kind == SFlag::S_IFREG => {
            if !write_piece(request, &parent, name)? {
                return Ok(());
            }
        }
        other => {
            let text = format!("{} would be of a kind ({other:?}) that cannot be copied", at.display());
            return Err(Error::new(Kind::InvalidArgument, text));
        }
    }
    let bits = Mode::from_bits_truncate(request.file_mode);
    own(request, &parent, name).context(text)?;
    fchmodat(&parent, name, bits, FchmodatFlags::FollowSymlink).context(text)
}

/// Writes one piece to the file's temporary name; true once it is whole and has its own.
fn write_piece(request: &CopyFileRequest, parent: &OwnedFd, name: &OsStr) -> Result<bool> {
    let text = || format!("Could not copy to {}", request.path);
    let wrong = || Error::new(Kind::InvalidArgument, format!("{} has impossible sizes", request.path));
    let offset = u64::try_from(request.offset).map_err(|_| wrong())?;
    let size = u64::try_from(request.file_size).map_err(|_| wrong())?;
    let length = u64::try_from(request.data.len()).map_err(|_| wrong())?;
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(wrong());
    }
    let temporary = [name.as_bytes(), b".tmp"].concat();
    let temporary = OsStr::from_bytes(&temporary);
    let mut flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if offset == 0 {
        flags |= OFlag::O_TRUNC;
    }
    let file = openat(parent, temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR).context(text)?;
    File::from(file).write_all_at(&request.data, offset).context(text)?;
    if offset + length < size {
        return Ok(false);
    }
    renameat(parent, temporary, parent, name).context(text)?;
    Ok(true)
}

fn own(request: &CopyFileRequest, parent: &OwnedFd, name: &OsStr) -> nix::Result<()> {
    let id = |id: i32| u32::try_from(id).ok();
    let (user, group) = (id(request.uid).map(Uid::from_raw), id(request.gid).map(Gid::from_raw));
    fchownat(parent, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {}
