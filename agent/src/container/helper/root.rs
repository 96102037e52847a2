//! Paths inside a container's root file system, which is hostile: every look-up is confined to it by the kernel (openat2), and what
//! is missing is made step by step from directory descriptors, so that no symlink leads out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    FileType, Mode, OFlags, RawMode, ResolveFlags, fstat, mkdirat, open, openat, openat2, readlinkat,
};
use rustix::io::Errno;

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;
/// A look-up that raced with a rename in another container's volume is repeated so often.
const MOST_TRIES: usize = 32;

const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// A root directory.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
}

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: open(path, PATH | OFlags::DIRECTORY, Mode::empty())? })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What is at `path`, symlinks followed inside the root, as a path descriptor.
    pub(super) fn find(&self, path: &str) -> io::Result<OwnedFd> {
        self.open_existing(path, OFlags::PATH)
    }

    /// Opens an existing file.
    pub(super) fn open_existing(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < MOST_TRIES => tries += 1,
                result => return Ok(result?),
            }
        }
    }

    /// The directory at `path`, made with those above it where missing.
    pub(super) fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        let mut walk = Walk::new(self, path)?;
        while let Some(name) = walk.rest.pop_front() {
            walk.enter(&name, |parent, name| mkdirat(parent, name, DIRECTORY))?;
        }
        walk.end()
    }

    /// The directory in which the last part of `path` lies, made where missing, and that part.
    pub(super) fn parent(&self, path: &str) -> io::Result<(OwnedFd, String)> {
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("/", trimmed));
        if matches!(name, "" | "." | "..") {
            return Err(Errno::INVAL.into());
        }
        Ok((self.directory(parent)?, name.to_owned()))
    }

    /// The file at `path`, made empty where missing, as a path descriptor.
    pub(super) fn file(&self, path: &str) -> io::Result<OwnedFd> {
        let mut walk = Walk::new(self, path)?;
        while let Some(name) = walk.rest.pop_front() {
            if walk.rest.is_empty() {
                let create =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                walk.enter(&name, |parent, name| {
                    openat(parent, name, create, Mode::from_raw_mode(0o644)).map(drop)
                })?;
            } else {
                walk.enter(&name, |parent, name| mkdirat(parent, name, DIRECTORY))?;
            }
        }
        walk.end()
    }
}

/// A walk that makes what is missing: the kernel's own look-up can't.
struct Walk<'a> {
    root: &'a Root,
    /// The directories from below the root down to where it is; "..", too, is a step of ours and not the kernel's.
    stack: Vec<OwnedFd>,
    rest: VecDeque<String>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Root, path: &str) -> io::Result<Self> {
        Ok(Self { root, stack: Vec::new(), rest: parts(path), links: 0 })
    }

    fn enter(
        &mut self,
        name: &str,
        make: impl Fn(&OwnedFd, &str) -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        if name == ".." {
            self.stack.pop();
            return Ok(());
        }
        let here = self.stack.last().unwrap_or(&self.root.fd);
        let flags = PATH | OFlags::NOFOLLOW;
        let found = match openat(here, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                match make(here, name) {
                    // Somebody else was quicker: whatever that is, it is looked at without following it.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                openat(here, name, flags, Mode::empty())?
            }
            result => result?,
        };
        if FileType::from_raw_mode(mode(&found)?) != FileType::Symlink {
            self.stack.push(found);
            return Ok(());
        }
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = readlinkat(&found, "", Vec::new())?.into_string().map_err(|_| Errno::ILSEQ)?;
        if target.starts_with('/') {
            self.stack.clear();
        }
        for part in parts(&target).into_iter().rev() {
            self.rest.push_front(part);
        }
        Ok(())
    }

    fn end(mut self) -> io::Result<OwnedFd> {
        match self.stack.pop() {
            Some(fd) => Ok(fd),
            None => self.root.fd.try_clone(),
        }
    }
}

fn parts(path: &str) -> VecDeque<String> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect()
}

pub(super) fn mode(fd: &OwnedFd) -> io::Result<RawMode> {
    Ok(fstat(fd)?.st_mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_is_made_or_found_outside_whatever_the_links_say() {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("root");
        fs::create_dir(&inside).unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        let root = Root::open(&inside).unwrap();
        symlink(outside.path(), inside.join("absolute")).unwrap();
        symlink("../../..", inside.join("up")).unwrap();
        symlink("/run/new", inside.join("dangling")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let before = fs::read_dir(outside.path()).unwrap().count();

        root.directory("/absolute/made").unwrap();
        root.directory("/up/above").unwrap();
        root.directory("/../../dots").unwrap();
        root.directory("/dangling/below").unwrap();
        root.file("/absolute/file").unwrap();
        root.file("/up/etc/file").unwrap();
        assert!(root.directory("/loop").is_err());
        assert!(root.find("/up/secret").is_err());
        assert!(root.find("/absolute/secret").is_err());
        assert!(root.find("/proc/self/root").is_err());

        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), before);
        for made in ["above", "dots", "run/new/below", "etc/file"] {
            assert!(inside.join(made).exists(), "{made}");
        }
        // The absolute link's target was made below the root.
        let below = inside.join(outside.path().strip_prefix("/").unwrap());
        assert!(below.join("made").is_dir() && below.join("file").is_file());
    }

    #[test]
    fn existing_things_are_kept_and_of_the_right_kind() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "text").unwrap();
        let root = Root::open(directory.path()).unwrap();
        root.file("/file").unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("file")).unwrap(), "text");
        assert!(root.directory("/file/below").is_err());
        let (_, name) = root.parent("/a/b/c/").unwrap();
        assert_eq!(name, "c");
        assert!(directory.path().join("a/b").is_dir());
        assert!(root.parent("/..").is_err());
        root.directory("/").unwrap();
    }
}
