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
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::storage::ROOT;
    use crate::testing::isolated;

    fn piece(path: &str, data: &[u8], (offset, size): (i64, i64)) -> CopyFileRequest {
        CopyFileRequest {
            path: format!("{ROOT}/{path}"),
            data: data.into(),
            offset,
            file_size: size,
            file_mode: 0o100_640,
            dir_mode: 0o750,
            uid: 7,
            gid: 8,
            ..Default::default()
        }
    }

    fn at(path: &str) -> PathBuf {
        PathBuf::from(ROOT).join(path)
    }

    #[test]
    fn a_file_appears_when_its_last_piece_has_come() {
        isolated(|| async {
            copy(&piece("a/b/file", b"first ", (0, 12))).unwrap();
            assert!(!at("a/b/file").exists());
            copy(&piece("a/b/file", b"second", (6, 12))).unwrap();
            assert_eq!(fs::read_to_string(at("a/b/file")).unwrap(), "first second");
            let (file, directory) = (fs::metadata(at("a/b/file")).unwrap(), fs::metadata(at("a/b")).unwrap());
            assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o640, 7, 8));
            assert_eq!(directory.mode() & 0o7777, 0o750);
            copy(&piece("a/b/file", b"", (0, 0))).unwrap();
            assert_eq!(fs::read_to_string(at("a/b/file")).unwrap(), "");
            assert_eq!(fs::read_dir(at("a/b")).unwrap().count(), 1);
        });
    }

    #[test]
    fn directories_and_symlinks_are_made_by_their_mode() {
        isolated(|| async {
            copy(&CopyFileRequest { file_mode: 0o40_700, ..piece("dir", b"", (0, 0)) }).unwrap();
            assert_eq!(fs::metadata(at("dir")).unwrap().mode() & 0o7777, 0o700);
            for target in ["../one", "../two"] {
                let link =
                    CopyFileRequest { file_mode: 0o120_777, ..piece("dir/link", target.as_bytes(), (0, 0)) };
                copy(&link).unwrap();
                assert_eq!(fs::read_link(at("dir/link")).unwrap(), PathBuf::from(target));
            }
            let device = CopyFileRequest { file_mode: 0o20_666, ..piece("dir/null", b"", (0, 0)) };
            assert_eq!(copy(&device).unwrap_err().kind(), Kind::InvalidArgument);
        });
    }

    #[test]
    fn nothing_is_written_elsewhere() {
        isolated(|| async {
            fs::create_dir_all("/run/outside").unwrap();
            fs::write("/run/outside/file", "kept").unwrap();
            fs::create_dir_all(ROOT).unwrap();
            symlink("/run/outside", at("link")).unwrap();
            symlink("/run/outside/file", at("file.tmp")).unwrap();
            for request in [
                piece("link/file", b"x", (0, 1)),
                CopyFileRequest { path: "/run/outside/file".into(), ..piece("", b"x", (0, 1)) },
                CopyFileRequest { path: format!("{ROOT}/../outside/file"), ..piece("", b"x", (0, 1)) },
            ] {
                assert_eq!(copy(&request).unwrap_err().kind(), Kind::InvalidArgument, "{request:?}");
            }
            copy(&piece("file", b"x", (0, 1))).unwrap_err();
            for sizes in [(0, 0), (-1, 1), (0, -1), (i64::MAX, i64::MAX)] {
                assert_eq!(copy(&piece("sizes", b"x", sizes)).unwrap_err().kind(), Kind::InvalidArgument);
            }
            assert_eq!(fs::read_to_string("/run/outside/file").unwrap(), "kept");
            assert_eq!(fs::read_dir("/run/outside").unwrap().count(), 1);
        });
    }
}
