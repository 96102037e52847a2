//! The node's snapshots: one directory each, in one directory. Called by `sandbox`'s restore, which resolves names,
//! and by `microvmctl`, which does the rest.

mod archive;
mod change;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::dir::Dir;
use super::{FinishedSave, Form, Manifest, Snapshot};
use crate::error::{Context, Error, Kind, Result};
use change::Change;

/// Name of a snapshot in a change's directory until it is shown.
const MADE: &str = "snapshot";

/// A node's store of snapshots.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A snapshot in a list.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it is, or why it can't be used.
    pub manifest: Result<Manifest>,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Store {
    /// The store in the directory `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Directory of the snapshot `name`. A name is never a path.
    ///
    /// # Errors
    /// `InvalidArgument` for what can't be a name, `NotFound` when there is none.
    pub fn resolve(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(checked(name)?);
        match fs::symlink_metadata(&dir) {
            Ok(_) => Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let root = self.root.display();
                let text =
                    format!("There is no snapshot {name:?} in {root}; `microvmctl snapshot ls` lists them");
                Err(Error::new(Kind::NotFound, text))
            }
            Err(error) => {
                Err(Error::caused(Kind::Internal, format!("Could not look at {}", dir.display()), error))
            }
        }
    }

    /// Opens the snapshot `name`.
    ///
    /// # Errors
    /// As [`Store::resolve`] and [`Snapshot::open`].
    pub fn open(&self, name: &str) -> Result<Snapshot> {
        Snapshot::open(&self.resolve(name)?)
    }

    /// All snapshots, sorted by name, also those that can't be used.
    ///
    /// # Errors
    /// When the store can't be read; one that is missing is empty.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let listed = |name: String| {
            let dir = self.root.join(&name);
            let manifest = Snapshot::open(&dir).map(|snapshot| snapshot.manifest().clone());
            let bytes = Dir::open(&dir).and_then(|dir| dir.disk_bytes()).unwrap_or(0);
            Listed { name, manifest, bytes }
        };
        Ok(self.names()?.into_iter().map(listed).collect())
    }

    /// Copies the snapshot in the directory `from` into the store, checking everything on the way.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken, `FailedPrecondition` while somebody else changes the store; as
    /// [`Snapshot::open`] and [`Snapshot::copy_to`].
    pub fn import_dir(&self, from: &Path, name: &str, form: Form) -> Result<FinishedSave> {
        self.add(name, |work| Snapshot::open(from)?.copy_to(work, form))
    }

    /// Copies the snapshot in an archive into the store: a tar file of a snapshot's directory, the OCI archive of a
    /// checkpoint image, or the archive that CRI's checkpoint makes.
    ///
    /// # Errors
    /// `InvalidArgument` when there is none in it; else as above.
    pub fn import_archive(&self, archive: &File, name: &str, form: Form) -> Result<FinishedSave> {
        self.add(name, |work| {
            let unpacked = work.with_extension("archive");
            fs::create_dir(&unpacked).context(|| format!("Could not make {}", unpacked.display()))?;
            archive::unpack(archive, &Dir::open(&unpacked)?)?;
            Snapshot::open(&unpacked)?.copy_to(work, form)
        })
    }

    /// Has `capture` make a snapshot in an empty directory, and takes it into the store.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken, before anything is captured; what `capture` says; as above.
    pub async fn capture(
        &self,
        name: &str,
        form: Form,
        capture: impl AsyncFnOnce(&Path) -> Result<()>,
    ) -> Result<FinishedSave> {
        let change = self.begin_to_add(name)?;
        let captured = change.work().join("captured");
        let made = match capture(&captured).await {
            Ok(()) => Snapshot::open(&captured)
                .and_then(|snapshot| snapshot.copy_to(&change.work().join(MADE), form)),
            Err(error) => Err(error),
        };
        self.show(name, change, made)
    }

    /// A file without a name on the store's filesystem, for an archive that is on its way here.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn scratch_file(&self) -> Result<File> {
        change::make_root(&self.root)?;
        let mut options = OpenOptions::new();
        let made = options.read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(&self.root);
        made.context(|| format!("Could not make a temporary file in {}", self.root.display()))
    }

    /// Removes the snapshot `name`. Restores that have opened it go on.
    ///
    /// # Errors
    /// As [`Store::resolve`]; `FailedPrecondition` while somebody else changes the store.
    pub fn remove(&self, name: &str) -> Result<()> {
        let dir = self.resolve(name)?;
        let change = Change::begin(&self.root)?;
        let removed = fs::rename(&dir, change.work().join("removed"));
        change.end(removed.context(|| format!("Could not remove the snapshot {name}")))
    }

    /// Adds the snapshot that `make` makes in the directory that it is given.
    fn add(&self, name: &str, make: impl FnOnce(&Path) -> Result<FinishedSave>) -> Result<FinishedSave> {
        let change = self.begin_to_add(name)?;
        let made = make(&change.work().join(MADE));
        self.show(name, change, made)
    }

    /// Locks the store for a snapshot whose name must be free.
    fn begin_to_add(&self, name: &str) -> Result<Change> {
        checked(name)?;
        let change = Change::begin(&self.root)?;
        if self.resolve(name).is_ok() {
            let text = format!("There is a snapshot {name:?} already; remove it or take another name");
            return change.end(Err(Error::new(Kind::AlreadyExists, text)));
        }
        Ok(change)
    }

    /// Gives the snapshot that a change has made its name.
    fn show(&self, name: &str, change: Change, made: Result<FinishedSave>) -> Result<FinishedSave> {
        let shown = made.and_then(|done| {
            // Onto nothing: the lock is ours, and a directory does not replace one that has files.
            fs::rename(change.work().join(MADE), self.root.join(name))
                .context(|| format!("Could not make the snapshot {name} visible"))?;
            Dir::open(&self.root)?.sync()?;
            Ok(done)
        });
        change.end(shown)
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names = change::entries(&self.root)?;
        names.retain(|name| checked(name).is_ok());
        names.sort();
        Ok(names)
    }
}

/// A name that can be a snapshot's: no path, nothing hidden, nothing that a shell or a URL would mangle.
fn checked(name: &str) -> Result<&str> {
    let fine = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first && name.len() <= 128 && name.bytes().all(fine) {
        return Ok(name);
    }
    let text = format!(
        "{name:?} can't be the name of a snapshot: 1 to 128 of A-Z a-z 0-9 . _ - that begin with a letter or digit"
    );
    Err(Error::new(Kind::InvalidArgument, text))
}
