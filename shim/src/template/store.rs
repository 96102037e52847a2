//! The node's templates: a directory each, named by its key. A few are kept, those that were used last; what no pod can use
//! any more goes when the next one is made. Called by `sandbox`, `make` and `microvmctl`.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Key;
use crate::error::{Context, Error, Kind, Result};
use crate::snapshot;

/// What a template is, in its directory.
const RECORD: &str = "template.json";
/// Guest RAM, with holes.
const RAM: &str = "ram";
/// Folder with the VMM's files.
const DEVICES: &str = "devices";
/// Held by who makes a template. No template's name begins with a dot.
const LOCK: &str = ".lock";
/// Where a template is made.
const WORK: &str = ".unfinished";
/// A record has some hundred bytes.
const MOST_RECORD: u64 = 64 << 10;
/// How long nobody tries again what has failed.
const PAUSE: Duration = Duration::from_secs(3600);
/// Longest copy of a template's RAM; it has some 60 MB.
const COPY: Duration = Duration::from_secs(30);

/// A node's templates.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Whether a template can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It can.
    Ready,
    /// It could not be made or cloned, and why; for an hour nobody tries again.
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    key: Key,
    /// Seconds since 1970.
    made: u64,
    state: State,
}

/// What there is for a key.
#[derive(Debug)]
pub enum Found {
    /// A template.
    Ready(Template),
    /// None, and none shall be made now.
    Failed,
    /// None.
    Missing,
}

/// A template that can be cloned.
#[derive(Debug, Clone)]
pub struct Template {
    dir: PathBuf,
}

/// A template in a list.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its key, if it can be read.
    pub key: Option<Key>,
    /// Whether it can be used, or why not.
    pub state: State,
    /// Whether kernel, initramfs, VMM or shim have changed since.
    pub stale: bool,
    /// Bytes on disk.
    pub bytes: u64,
    /// When it was made or used last.
    pub used: SystemTime,
}

/// The right to make templates, which one process has at a time.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// The templates in the directory `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Store { root: root.to_owned() }
    }

    /// The template of `key`.
    ///
    /// # Errors
    /// When it is there and can't be read.
    pub fn find(&self, key: &Key) -> Result<Found> {
        let dir = self.root.join(key.name()?);
        let Some(record) = read(&dir)? else { return Ok(Found::Missing) };
        // A piece of a checksum names it: the whole key has to be the same.
        if record.key != *key {
            return Ok(Found::Missing);
        }
        match record.state {
            State::Ready => Ok(Found::Ready(Template { dir })),
            State::Failed(_) if seconds().saturating_sub(record.made) < PAUSE.as_secs() => Ok(Found::Failed),
            State::Failed(_) => Ok(Found::Missing),
        }
    }

    /// The right to change the store; none while another process has it.
    ///
    /// # Errors
    /// When the store can't be made or locked.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let what = || format!("Could not lock the templates {}", self.root.display());
        // Readable by root only: what a guest's kernel keeps secret is in there.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root).context(what)?;
        let path = self.root.join(LOCK);
        let file = File::options().write(true).create(true).truncate(false).open(path).context(what)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::caused(Kind::Internal, what(), error)),
        }
    }

    /// Adds a template: `fill` gets an empty folder for the VMM's files and a path for the RAM.
    ///
    /// # Errors
    /// What `fill` answers, and what can't be written. Nothing is left then.
    pub async fn add(
        &self,
        _: &Lock,
        key: Key,
        fill: impl AsyncFnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<()> {
        let (work, dir) = (self.root.join(WORK), self.root.join(key.name()?));
        let what = || format!("Could not make the template {}", dir.display());
        // Whoever left it is gone, or the lock would not be ours.
        remove(&work)?;
        DirBuilder::new().mode(0o700).recursive(true).create(work.join(DEVICES)).context(what)?;
        let made = match fill(&work.join(DEVICES), &work.join(RAM)).await {
            Ok(()) => write(&work, key, State::Ready),
            failed => failed,
        };
        let placed = made.and_then(|()| {
            remove(&dir)?;
            fs::rename(&work, &dir).context(what)
        });
        placed.map_err(|error| error.with_cleanup(remove(&work).err().into_iter().collect()))
    }

    /// Puts a note in the place of the template of `key`, so that nobody tries again for an hour.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn refuse(&self, key: Key, reason: &str) -> Result<()> {
        let dir = self.root.join(key.name()?);
        remove(&dir)?;
        let what = || format!("Could not make {}", dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).context(what)?;
        write(&dir, key, State::Failed(reason.to_owned()))
    }

    /// All templates, those used last first, also those that can't be used.
    ///
    /// # Errors
    /// When the store can't be read; one that is missing is empty.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let what = || format!("Could not list the templates {}", self.root.display());
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context(what)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.context(what)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                all.push(listed(name, &entry.path()));
            }
        }
        all.sort_by_key(|one| std::cmp::Reverse(one.used));
        Ok(all)
    }

    /// Removes the template `name`.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        let known = self.list()?.iter().any(|one| one.name == name);
        if !known {
            let text = format!("There is no template {name:?} in {}", self.root.display());
            return Err(Error::new(Kind::NotFound, text));
        }
        remove(&self.root.join(name))
    }

    /// Removes what is stale or damaged, and all but the `most` that were used last.
    ///
    /// # Errors
    /// The first that can't be removed; the others are gone.
    pub fn prune(&self, _: &Lock, most: usize) -> Result<()> {
        let (good, bad): (Vec<_>, Vec<_>) =
            self.list()?.into_iter().partition(|one| one.key.is_some() && !one.stale);
        let surplus = good.into_iter().skip(most);
        let removed = bad.into_iter().chain(surplus).map(|one| remove(&self.root.join(one.name)));
        removed.fold(Ok(()), Result::and)
    }
}

impl Template {
    /// Notes that it is used now: those that were used last are kept. Not before a pod has started: a filesystem that
    /// writes its journal makes this wait for some 100 ms.
    ///
    /// # Errors
    /// When the template has gone meanwhile.
    pub fn touch(&self) -> Result<()> {
        let touched = File::open(&self.dir).and_then(|dir| dir.set_modified(SystemTime::now()));
        touched.context(|| format!("Could not note the use of {}", self.dir.display()))
    }

    /// Copies RAM into the file `ram`, which is empty and has the size of the guest's, and the VMM's files into the
    /// empty folder `devices`.
    ///
    /// # Errors
    /// When the template has gone meanwhile, or the host is full.
    pub fn copy(&self, ram: &Path, devices: &Path) -> Result<()> {
        let what = || format!("Could not copy the template {}", self.dir.display());
        let from = File::open(self.dir.join(RAM)).context(what)?;
        let to = File::options().write(true).open(ram).context(what)?;
        for entry in fs::read_dir(self.dir.join(DEVICES)).context(what)? {
            let entry = entry.context(what)?;
            fs::copy(entry.path(), devices.join(entry.file_name())).context(what)?;
        }
        snapshot::copy_ram(&from, &to, Instant::now() + COPY).context(what)
    }
}

/// What is in a template's directory; none if there is none.
fn read(dir: &Path) -> Result<Option<Record>> {
    let path = dir.join(RECORD);
    let what = || format!("Could not read {}", path.display());
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.context(what)?,
    };
    serde_json::from_reader(io::Read::take(file, MOST_RECORD)).context(what).map(Some)
}

fn write(dir: &Path, key: Key, state: State) -> Result<()> {
    let path = dir.join(RECORD);
    let what = || format!("Could not write {}", path.display());
    let text = serde_json::to_vec_pretty(&Record { key, made: seconds(), state }).context(what)?;
    fs::write(&path, text).context(what)
}

fn listed(name: String, dir: &Path) -> Listed {
    let used = fs::metadata(dir).and_then(|data| data.modified()).unwrap_or(UNIX_EPOCH);
    let bytes = disk_bytes(dir) + disk_bytes(&dir.join(DEVICES));
    let damaged = |reason: String| (None, State::Failed(reason), false);
    let (key, state, stale) = match read(dir) {
        Ok(Some(Record { key, state, .. })) => {
            let stale = !key.is_current();
            (Some(key), state, stale)
        }
        Ok(None) => damaged("it has no record".into()),
        Err(error) => damaged(error.chain()),
    };
    Listed { name, key, state, stale, bytes, used }
}

fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|data| data.blocks() * 512).sum()
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.context(|| format!("Could not remove {}", dir.display())),
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
