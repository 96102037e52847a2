//! One change of the store at a time, and nothing left of one that crashed. Called by `store`.
//!
//! A change is prepared in a directory beside the snapshots, becomes visible by one rename, and its directory goes in
//! any case. If it could not go, the next change removes it.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};

/// Where a change is prepared. No snapshot's name begins with a dot.
const WORK: &str = ".unfinished";
/// Held by whoever changes the store.
const LOCK: &str = ".lock";

/// A change that is being prepared; the store is locked as long as it lives.
#[derive(Debug)]
pub(super) struct Change {
    work: PathBuf,
    _lock: File,
}

impl Change {
    /// Locks the store and makes an empty directory in it.
    ///
    /// # Errors
    /// `FailedPrecondition` while somebody else changes the store.
    pub(super) fn begin(root: &Path) -> Result<Self> {
        make_root(root)?;
        let lock = lock(root)?;
        let work = root.join(WORK);
        // Whoever left it is gone, or the lock would not be ours.
        remove(&work)?;
        private(&work)?;
        Ok(Change { work, _lock: lock })
    }

    /// The directory.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// Removes the directory, whatever became of the change.
    pub(super) fn end<T>(self, result: Result<T>) -> Result<T> {
        match (result, remove(&self.work)) {
            (Ok(done), Ok(())) => Ok(done),
            (Ok(_), Err(error)) => Err(error),
            (Err(error), removed) => Err(error.with_cleanup(removed.err().into_iter().collect())),
        }
    }
}

/// Makes the store's directory, readable by its owner only: guest RAM holds secrets.
pub(super) fn make_root(root: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
    made.context(|| format!("Could not make the snapshot store {}", root.display()))
}

/// The names in the store's directory; none if it is missing.
pub(super) fn entries(root: &Path) -> Result<Vec<String>> {
    let what = || format!("Could not list the snapshot store {}", root.display());
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(what)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.context(what)?.file_name().into_string().ok());
    }
    Ok(names)
}

fn lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let what = || format!("Could not lock the snapshot store {}", root.display());
    let file = File::options().write(true).create(true).truncate(false).open(path).context(what)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let text = format!(
                "The snapshot store {} is being changed by another process; try again when that is done",
                root.display()
            );
            Err(Error::new(Kind::FailedPrecondition, text))
        }
        Err(TryLockError::Error(error)) => Err(Error::caused(Kind::Internal, what(), error)),
    }
}

fn private(dir: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(dir).context(|| format!("Could not make {}", dir.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("Could not remove {}", dir.display())),
    }
}
