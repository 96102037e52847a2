//! One flat directory, of which only regular files are ever opened, by name, without following anything. Called
//! by the rest of `snapshot`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir as NixDir;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::error::{Context, Error, Kind, Result};

/// Most files that a snapshot may have.
pub(super) const MAX_FILES: usize = 64;

/// An open directory.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens `path`, whose last component must be a directory and no symbolic link.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|errno| {
            let kind = match errno {
                nix::Error::ENOENT => Kind::NotFound,
                nix::Error::ENOTDIR | nix::Error::ELOOP => Kind::InvalidArgument,
                _ => Kind::Internal,
            };
            Error::caused(kind, format!("Could not open the snapshot directory {}", path.display()), errno)
        })?;
        Ok(Self { fd, path: path.into() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names in it, sorted. More than [`MAX_FILES`] or a name that is not plain text is an error.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let what = || format!("Could not list the snapshot directory {}", self.path.display());
        let own = openat2(
            &self.fd,
            ".",
            OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC),
        );
        let mut list = NixDir::from_fd(own.context(what)?).context(what)?;
        let mut names = Vec::new();
        for entry in list.iter() {
            let entry = entry.context(what)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if names.len() == MAX_FILES {
                return Err(self.invalid(&format!("has more than {MAX_FILES} files")));
            }
            let name = std::str::from_utf8(name).ok().filter(|name| !name.chars().any(char::is_control));
            let name = name.ok_or_else(|| {
                self.invalid(&format!("has a file whose name is not plain text: {:?}", entry.file_name()))
            })?;
            names.push(name.to_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Opens a regular file with one name only, for reading. Anything else is not even opened: a device could act
    /// and a fifo would block.
    pub(super) fn open_file(&self, name: &str) -> Result<File> {
        let what = || format!("Could not open {}", self.path.join(name).display());
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV);
        let handle = match openat2(&self.fd, plain(name)?, how) {
            Ok(fd) => File::from(fd),
            Err(nix::Error::ENOENT) => return Err(self.invalid(&format!("lacks the file {name:?}"))),
            Err(errno) => return Err(Error::caused(Kind::Internal, what(), errno)),
        };
        let metadata = handle.metadata().context(what)?;
        if !metadata.is_file() {
            return Err(self.invalid(&format!("has {name:?}, which is {}", describe(&metadata))));
        }
        if metadata.nlink() != 1 {
            return Err(self.invalid(&format!(
                "has {name:?}, which has {} hard links; copy it to a file of its own",
                metadata.nlink()
            )));
        }
        // The same inode, whatever has become of the name meanwhile.
        File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).context(what)
    }

    /// Makes a file that does not exist yet, readable by its owner only.
    pub(super) fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let how = OpenHow::new()
            .flags(flags)
            .mode(Mode::S_IRUSR | Mode::S_IWUSR)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV);
        let file = openat2(&self.fd, plain(name)?, how);
        file.map(File::from).map_err(|errno| {
            write_error(format!("Could not make {}", self.path.join(name).display()), errno.into())
        })
    }

    /// A file for reading and writing without a name: it is gone when the last descriptor is closed.
    pub(super) fn scratch_file(&self, name: &str) -> Result<File> {
        let file = self.create_file(name)?;
        self.unlink(name)?;
        Ok(file)
    }

    pub(super) fn unlink(&self, name: &str) -> Result<()> {
        match unlinkat(&self.fd, plain(name)?, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
            Err(errno) => {
                let text = format!("Could not remove {}", self.path.join(name).display());
                Err(Error::caused(Kind::Internal, text, errno))
            }
        }
    }

    /// Removes every file in it; goes on after failures.
    pub(super) fn clear(&self) -> Vec<Error> {
        match self.names() {
            Ok(names) => names.iter().filter_map(|name| self.unlink(name).err()).collect(),
            Err(error) => vec![error],
        }
    }

    /// Bytes on disk of its files.
    pub(super) fn disk_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for name in self.names()? {
            let metadata = self.open_file(&name)?.metadata();
            bytes += metadata.context(|| format!("Could not look at {name}"))?.blocks() * 512;
        }
        Ok(bytes)
    }

    /// Makes the names in it durable.
    pub(super) fn sync(&self) -> Result<()> {
        fsync(self.fd.as_fd())
            .map_err(|errno| write_error(format!("Could not sync {}", self.path.display()), errno.into()))
    }

    /// A complaint about what is in it.
    pub(super) fn invalid(&self, what: &str) -> Error {
        Error::new(Kind::InvalidArgument, format!("The snapshot {} {what}", self.path.display()))
    }
}

/// A failed write: a full disk is the one kind that a person can act on.
pub(super) fn write_error(message: String, error: io::Error) -> Error {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    Error::caused(if full { Kind::ResourceExhausted } else { Kind::Internal }, message, error)
}

/// Whether `name` is one path component.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn plain(name: &str) -> Result<&str> {
    if is_plain(name) {
        return Ok(name);
    }
    Err(Error::new(Kind::InvalidArgument, format!("{name:?} can't be the name of a file of a snapshot")))
}

fn describe(metadata: &std::fs::Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    match () {
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a fifo",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no regular file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_regular_files_of_one_name_are_opened() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        std::fs::write(at("twin"), "x").unwrap();
        std::fs::hard_link(at("twin"), at("twin2")).unwrap();
        symlink(at("file"), at("link")).unwrap();
        std::fs::create_dir(at("dir")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRUSR).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        assert!(dir.open_file("file").is_ok());
        for (name, why) in [
            ("link", "a symbolic link"),
            ("dir", "a directory"),
            ("fifo", "a fifo"),
            ("twin", "2 hard links"),
            ("none", "lacks the file"),
            ("../file", "can't be the name"),
            ("", "can't be the name"),
        ] {
            let error = dir.open_file(name).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{name}");
            assert!(error.chain().contains(why), "{name}: {}", error.chain());
        }
        symlink(temp.path(), at("dirlink")).unwrap();
        assert_eq!(Dir::open(&at("dirlink")).unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn existing_files_are_not_overwritten_and_crowds_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        dir.create_file("a").unwrap();
        assert!(dir.create_file("a").is_err());
        assert!(dir.clear().is_empty());
        assert_eq!(dir.names().unwrap(), Vec::<String>::new());
        for n in 0..=MAX_FILES {
            std::fs::write(temp.path().join(n.to_string()), "").unwrap();
        }
        assert!(dir.names().unwrap_err().chain().contains("more than 64 files"));
    }
}
