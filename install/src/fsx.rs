//! Files written whole or not at all, and their checksums. Called by everything in this crate.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
#[cfg(feature = "build")]
use std::path::PathBuf;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Puts a file with these bytes and this mode in place of whatever `path` names: under another name first, synced,
/// then renamed, so that neither a reader nor a crash ever meets half a file.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let what = || format!("Could not write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(parent(path)).with_context(what)?;
    file.write_all(bytes).with_context(what)?;
    file.as_file().set_permissions(Permissions::from_mode(mode)).with_context(what)?;
    file.as_file().sync_all().with_context(what)?;
    file.persist(path).with_context(what)?;
    sync_directory(parent(path))
}

/// Makes names in a directory survive a crash.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    let directory = File::open(path).with_context(|| format!("Could not open {}", path.display()))?;
    directory.sync_all().with_context(|| format!("Could not sync {}", path.display()))
}

/// SHA-256 of a file, in hex.
pub(crate) fn sha256_of(path: &Path) -> io::Result<String> {
    let mut hasher = Hashing(Sha256::new());
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hex(&hasher.0.finalize()))
}

/// SHA-256 of bytes, in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Reads a file, which the error names.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Could not read {}", path.display()))
}

/// Makes a directory and those above it.
#[cfg(feature = "build")]
pub(crate) fn make_directory(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).with_context(|| format!("Could not make the directory {}", path.display()))?;
    Ok(path.to_owned())
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
