//! The record of what was installed, from which an upgrade and `--uninstall` know what is ours. Called by the installer.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::fsx;

/// Where it lies.
pub(super) const PATH: &str = "/var/lib/microvm/install.json";
const FORMAT: u32 = 1;

/// Everything that the installer made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// Version of what was installed.
    pub(super) version: String,
    /// In the order in which they were laid down.
    pub(super) entries: Vec<Entry>,
    /// Directories that were not there before, each after its parent.
    pub(super) directories: Vec<PathBuf>,
}

/// One file or link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// As a program in the root sees it.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// SHA-256 of the file's bytes, or of the link's target.
    pub(super) sha256: String,
}

/// What may happen to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Ours alone.
    File,
    /// A person may edit it; from then on it is theirs.
    Config,
    /// A symbolic link.
    Link,
}

impl Record {
    pub(super) fn new(version: &str) -> Self {
        Self { format: FORMAT, version: version.into(), ..Self::default() }
    }

    /// Reads the record of `root`, if something is installed there.
    pub(super) fn read(root: &Path) -> Result<Option<Self>> {
        let path = within(root, Path::new(PATH));
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_context(|| format!("Could not read {}", path.display()))?,
        };
        let record: Self = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is no record of an installation", path.display()))?;
        record.check().with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(record))
    }

    /// Writes it, durably.
    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        fsx::replace(&within(root, Path::new(PATH)), &json, 0o644)
    }

    pub(super) fn find(&self, path: &Path) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path)
    }

    /// This and whatever else `other` has, so that nothing is forgotten while one turns into the other.
    pub(super) fn with(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.entries.extend(other.entries.iter().filter(|entry| self.find(&entry.path).is_none()).cloned());
        let known: BTreeSet<_> = self.directories.iter().collect();
        both.directories.extend(other.directories.iter().filter(|path| !known.contains(path)).cloned());
        both
    }

    /// Files are removed by this record: it must not lead out of the root.
    fn check(&self) -> Result<()> {
        ensure!(self.format == FORMAT, "It has the format {} instead of {FORMAT}", self.format);
        for path in self.entries.iter().map(|entry| &entry.path).chain(&self.directories) {
            let mut parts = path.components();
            let absolute = parts.next() == Some(Component::RootDir);
            let plain = parts.all(|part| matches!(part, Component::Normal(_)));
            ensure!(absolute && plain && path != Path::new("/"), "It names {}", path.display());
        }
        Ok(())
    }
}

/// The place of `path` on the machine that installs.
pub(super) fn within(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_leads_out_of_the_root_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("var/lib/microvm")).unwrap();
        for bad in ["/../etc/passwd", "etc/passwd", "/", "/usr/../../etc"] {
            let mut record = Record::new("1");
            record.directories.push(bad.into());
            record.write(root.path()).unwrap();
            let error = format!("{:#}", Record::read(root.path()).unwrap_err());
            assert!(error.contains("install.json is damaged") && error.contains(bad), "{error}");
        }
        let mut record = Record::new("1");
        record.directories.push("/etc/containerd".into());
        record.write(root.path()).unwrap();
        assert_eq!(Record::read(root.path()).unwrap(), Some(record));
    }

    #[test]
    fn nothing_installed_is_no_error() {
        assert_eq!(Record::read(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }
}
