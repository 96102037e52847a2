//! `sandbox.json` on disk: replaced as a whole, so that a reader and a crash at any point see one version or the
//! other. Called by the ledger only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Owner, Resource, tree};
use crate::error::{Context, Error, Kind, Result};

const NAME: &str = "sandbox.json";
/// The next version of the record until it is complete. One name is enough: the ledger's lock lets one writer in.
const NEXT: &str = "sandbox.json.next";
/// In the bundle of the sandbox's first container, a link to the sandbox's directory.
const LINK: &str = "vm";
/// A change that an older shim would misread makes this grow.
const FORMAT: u32 = 1;

/// The content of `sandbox.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    pub(super) owner: Owner,
    /// Oldest first.
    pub(super) resources: Vec<Resource>,
}

impl Record {
    pub(super) fn new(owner: Owner) -> Self {
        Record { format: FORMAT, owner, resources: Vec::new() }
    }
}

/// Read on its own first, so that a record of another format gets a clear answer.
#[derive(Deserialize)]
struct Header {
    format: u32,
}

pub(super) fn make_directory(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(|| format!("Could not make sandbox directory {}", dir.display()))
}

pub(super) fn exists(dir: &Path) -> bool {
    dir.join(NAME).symlink_metadata().is_ok()
}

/// Lets those who know only the bundle find `dir`.
pub(super) fn link(bundle: &Path, dir: &Path) -> Result<()> {
    if !bundle.exists() {
        return Ok(());
    }
    let (path, next) = (bundle.join(LINK), bundle.join(format!(".{LINK}")));
    let linked = match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(dir, &next).and_then(|()| fs::rename(&next, &path)),
    };
    linked.context(|| format!("Could not link {} to {}", path.display(), dir.display()))
}

pub(super) fn linked(bundle: &Path) -> Option<PathBuf> {
    fs::read_link(bundle.join(LINK)).ok()
}

pub(super) fn write(dir: &Path, record: &Record) -> Result<()> {
    let path = dir.join(NAME);
    let text = serde_json::to_vec_pretty(record)
        .context(|| format!("Could not express {} as JSON", path.display()))?;
    replace(dir, &path, &text).context(|| format!("Could not write {}", path.display()))
}

fn replace(dir: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let next = dir.join(NEXT);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    File::open(dir)?.sync_all()
}

pub(super) fn read(dir: &Path) -> Result<Record> {
    let path = dir.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(Kind::NotFound, format!("There is no sandbox in {}", dir.display())));
        }
        Err(error) => return Err(error).context(|| format!("Could not read {}", path.display())),
    };
    let malformed = || format!("Could not understand {}", path.display());
    let header: Header = serde_json::from_slice(&text).kind(Kind::InvalidArgument, malformed)?;
    if header.format != FORMAT {
        return Err(Error::new(
            Kind::InvalidArgument,
            format!(
                "{} has format {}, this shim knows {FORMAT}: use the shim version that wrote it",
                path.display(),
                header.format
            ),
        ));
    }
    serde_json::from_slice(&text).kind(Kind::InvalidArgument, malformed)
}

/// Removes everything in `dir`, the record last: as long as anything is left, a later run finds the record too.
pub(super) fn remove_directory(dir: &Path) -> Result<()> {
    let failed = |path: PathBuf| move || format!("Could not remove {}", path.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.context(failed(dir.to_owned()))?,
    };
    for entry in entries {
        let path = entry.context(failed(dir.to_owned()))?.path();
        if path.file_name().is_some_and(|name| name != NAME) {
            tree::remove(&path).context(failed(path))?;
        }
    }
    tree::remove(dir).context(failed(dir.to_owned()))
}
