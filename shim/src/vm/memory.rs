//! Guest RAM as a file on a tmpfs of its own: the VMM maps it, `snapshot` copies it, the kernel bounds and frees it.
//! Called by `sandbox`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{Whence, lseek64};

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// RAM from which on huge pages are worth what they waste. An idle guest touches single pages of some 10 MB more of them
/// than it needs (18 MB of 92 in a guest of 256 MiB).
const HUGE_FROM: u64 = 1 << 30;

/// The RAM of one guest.
#[derive(Debug, Clone)]
pub struct Ram {
    file: PathBuf,
}

impl Ram {
    /// Mounts a tmpfs of `size` bytes at `dir`/ram and makes the guest's RAM in it: the sparse file `mem`. With
    /// `huge` it gets transparent huge pages where the host's tmpfs has them, unless it is so small that what they waste
    /// counts.
    ///
    /// # Errors
    /// `InvalidArgument` for a size that is no multiple of 2 MiB; else what failed. What was made is in the ledger.
    pub fn create(dir: &Path, size: u64, huge: bool, ledger: &Ledger) -> Result<Self> {
        let place = dir.join("ram");
        let what = || format!("Could not mount a tmpfs of {size} bytes at {}", place.display());
        ledger.claim(Resource::Directory(place.clone()))?;
        DirBuilder::new().mode(0o700).create(&place).context(what)?;
        ledger.claim(Resource::Mount(place.clone()))?;
        mount_tmpfs(&place, size, huge && size >= HUGE_FROM).context(what)?;
        Self::sparse(place.join("mem"), size)
    }

    /// Makes the guest's RAM as the file `name` in `dir`, a directory of the host's choice.
    ///
    /// # Errors
    /// As [`Ram::create`]; `AlreadyExists` if there is such a file.
    pub fn create_in(dir: &Path, name: &str, size: u64, ledger: &Ledger) -> Result<Self> {
        let file = dir.join(name);
        if file.exists() {
            let text = format!("{} exists already; another sandbox may use it", file.display());
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        ledger.claim(Resource::File(file.clone()))?;
        Self::sparse(file, size)
    }

    fn sparse(file: PathBuf, size: u64) -> Result<Self> {
        let what = || format!("Could not make guest RAM {} of {size} bytes", file.display());
        if size == 0 || !size.is_multiple_of(2 << 20) {
            return Err(Error::new(Kind::InvalidArgument, what() + ": not a multiple of 2 MiB"));
        }
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(&file).context(what)?;
        made.set_len(size).context(what)?;
        Ok(Self { file })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// How many bytes the guest has touched, and the host has spent.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn used(&self) -> Result<u64> {
        let what = || format!("Could not find out how much of {} is in use", self.file.display());
        let file = File::open(&self.file).context(what)?;
        let (mut used, mut offset) = (0, 0);
        loop {
            let data = match lseek64(&file, offset, Whence::SeekData) {
                // No more data up to the end.
                Err(Errno::ENXIO) => return Ok(used),
                other => other.context(what)?,
            };
            offset = lseek64(&file, data, Whence::SeekHole).context(what)?;
            used += u64::try_from(offset - data).context(what)?;
        }
    }
}

/// Gives back everything that is in the RAM file `ram`, which then is as [`Ram::create`] made it.
///
/// # Errors
/// When the file can't be changed.
pub fn clear(ram: &Path) -> Result<()> {
    let what = || format!("Could not clear guest RAM {}", ram.display());
    let file = OpenOptions::new().write(true).open(ram).context(what)?;
    let size = file.metadata().context(what)?.len();
    file.set_len(0).and_then(|()| file.set_len(size)).context(what)
}

fn mount_tmpfs(place: &Path, size: u64, huge: bool) -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Two inodes: the root and the one file.
    let plain = format!("size={size},mode=0700,nr_inodes=2");
    let attempt = |options: &str| mount(Some("microvm-ram"), place, Some("tmpfs"), flags, Some(options));
    if huge {
        match attempt(&format!("{plain},huge=within_size")) {
            // A kernel without transparent huge pages for tmpfs.
            Err(Errno::EINVAL) => {}
            other => return other,
        }
    }
    attempt(&plain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::vm::tests::ledger;

    const MIB: u64 = 1 << 20;

    #[test]
    fn ram_is_sparse_bounded_and_gone_after_release() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        for huge in [true, false] {
            let ram = Ram::create(dir.path(), 8 * MIB, huge, &ledger).unwrap();
            assert_eq!(std::fs::metadata(ram.path()).unwrap().len(), 8 * MIB);
            assert_eq!(ram.used().unwrap(), 0);
            let file = OpenOptions::new().write(true).open(ram.path()).unwrap();
            file.write_all_at(&[1], 0).unwrap();
            file.write_all_at(&[1], 4 * MIB + 1).unwrap();
            // With huge pages one byte takes a whole one.
            let used = ram.used().unwrap();
            assert!((8192..=4 * MIB).contains(&used), "{used}");
            assert!(file.write_all_at(&vec![1; 9 << 20], 0).is_err(), "more than its size must not fit");
            drop(file);
            clear(ram.path()).unwrap();
            assert_eq!((ram.used().unwrap(), std::fs::metadata(ram.path()).unwrap().len()), (0, 8 * MIB));
            let [directory, mount] = &ledger.resources()[..] else { panic!("{:?}", ledger.resources()) };
            ledger.release(mount).unwrap();
            ledger.release(directory).unwrap();
            assert!(!dir.path().join("ram").exists());
        }
    }

    #[test]
    fn ram_in_a_directory_of_the_hosts_choice_never_takes_a_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        Ram::create_in(dir.path(), "one.mem", 2 * MIB, &ledger).unwrap();
        let error = Ram::create_in(dir.path(), "one.mem", 2 * MIB, &ledger).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        let error = Ram::create_in(dir.path(), "two.mem", 2 * MIB + 1, &ledger).unwrap_err();
        assert!(error.chain().contains("not a multiple of 2 MiB"), "{}", error.chain());
        assert_eq!(ledger.resources().len(), 2);
        ledger.release(&Resource::File(dir.path().join("one.mem"))).unwrap();
        assert!(!dir.path().join("one.mem").exists());
    }
}
