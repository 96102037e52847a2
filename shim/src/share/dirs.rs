//! One tree of the share as two directories: `base`, where the host makes mount points, and `shown`, a read-only
//! mount of it, which the daemon serves and where the mounts are. A guest can't plant a symbolic link among the
//! mount points, as it can write only inside volumes. Called by `share`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, open, openat2, unlinkat};
use rustix::io::Errno;

use super::tree::{Propagation, Tree};
use crate::error::{Context, Result};
use crate::ledger::{Ledger, Resource};

/// Mode of the directories: the daemon serves them as root, and the guest's users must pass through.
const MODE: u32 = 0o755;

/// One tree of the share.
#[derive(Debug)]
pub(super) struct Dirs {
    base: OwnedFd,
    shown: OwnedFd,
    path: PathBuf,
}

impl Dirs {
    /// Makes `<share>/<name>` and `<share>/base/<name>`.
    pub(super) fn prepare(share: &Path, name: &str, ledger: &Ledger) -> Result<Self> {
        let (base, path) = (share.join("base").join(name), share.join(name));
        let failed = || format!("Could not prepare the share {}", path.display());
        for dir in [&base, &path] {
            fs::create_dir_all(dir).context(failed)?;
        }
        ledger.claim(Resource::Mount(path.clone()))?;
        let mount = || -> io::Result<(OwnedFd, OwnedFd)> {
            let tree = Tree::bind(&base)?;
            tree.restrict(true)?;
            // Out of the peer group of the host's mount first: mounts shall appear in the daemon, and there only.
            tree.propagate(Propagation::Private)?;
            tree.propagate(Propagation::Shared)?;
            let place = directory(&path)?;
            tree.attach(place.as_fd())?;
            Ok((directory(&base)?, directory(&path)?))
        };
        let (base, shown) = mount().context(failed)?;
        Ok(Self { base, shown, path })
    }

    /// Where the daemon's root is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory of one container; it may be there already.
    pub(super) fn entry(&self, entry: &str) -> io::Result<()> {
        made(mkdirat(&self.base, entry, Mode::from_raw_mode(MODE)))
    }

    /// Makes a mount point in it, a directory or an empty file.
    pub(super) fn mount_point(&self, entry: &str, name: &str, directory: bool) -> io::Result<()> {
        let parent = beneath(&self.base, Path::new(entry))?;
        if directory {
            return made(mkdirat(&parent, name, Mode::from_raw_mode(MODE)));
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        made(rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop))
    }

    /// The mount point where the daemon shows it.
    pub(super) fn place(&self, entry: &str, name: &str) -> io::Result<OwnedFd> {
        beneath(&self.shown, &Path::new(entry).join(name))
    }

    /// Path of the mount point.
    pub(super) fn place_path(&self, entry: &str, name: &str) -> PathBuf {
        self.path.join(entry).join(name)
    }

    /// Removes one container's directory and its mount points, on which nothing is mounted any more.
    pub(super) fn remove(&self, entry: &str) -> io::Result<()> {
        let parent = match beneath(&self.base, Path::new(entry)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let listed = openat2(
            &parent,
            ".",
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH,
        )?;
        for found in rustix::fs::Dir::read_from(&listed)? {
            let found = found?;
            let name = found.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            match unlinkat(&parent, name, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => unlinkat(&parent, name, AtFlags::REMOVEDIR)?,
                done => done?,
            }
        }
        Ok(unlinkat(&self.base, entry, AtFlags::REMOVEDIR)?)
    }
}

/// Opens what `path` names below `dir`, without following a symbolic link.
fn beneath(dir: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(dir, path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)?)
}

fn directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn made(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::EXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
