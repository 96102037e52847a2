//! Everything about a folder of the host that a guest could change. Called by `share.rs`.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Each path of a folder, and in words what is there: kind, owner, times, extended attributes, content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<PathBuf, String>);

impl Tree {
    /// Reads a folder and all below it, links as such.
    pub(crate) fn read(folder: &Path) -> Result<Tree> {
        let mut tree = Tree(BTreeMap::new());
        tree.add(folder)?;
        Ok(tree)
    }

    /// What is other than it was, a line for each path.
    pub(crate) fn changes_since(&self, before: &Tree) -> Vec<String> {
        let paths = self.0.keys().chain(before.0.keys()).collect::<std::collections::BTreeSet<_>>();
        let words = |tree: &Tree, path| tree.0.get(path).map_or("nothing", String::as_str).to_owned();
        paths
            .into_iter()
            .filter(|path| self.0.get(*path) != before.0.get(*path))
            .map(|path| format!("{}: {} was {}", path.display(), words(self, path), words(before, path)))
            .collect()
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let what = || format!("Could not read {}", path.display());
        let metadata = fs::symlink_metadata(path).with_context(what)?;
        let content = if metadata.is_dir() {
            for entry in fs::read_dir(path).with_context(what)? {
                self.add(&entry?.path())?;
            }
            Vec::new()
        } else if metadata.is_symlink() {
            fs::read_link(path).with_context(what)?.as_os_str().as_bytes().to_owned()
        } else if metadata.is_file() {
            fs::read(path).with_context(what)?
        } else {
            Vec::new()
        };
        let attributes = attributes(path).with_context(what)?;
        self.0.insert(path.to_owned(), describe(&metadata, &attributes, &content));
        Ok(())
    }
}

/// All but the time of the last access, which reading may change.
fn describe(metadata: &Metadata, attributes: &[u8], content: &[u8]) -> String {
    let hash =
        |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!(
        "mode {:o}, owner {}:{}, device {}, {} links, {} bytes, modified {}.{:09}, changed {}.{:09}, attributes {}, {}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.rdev(),
        metadata.nlink(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
        &hash(attributes)[..8],
        &hash(content)[..16],
    )
}

/// Names and values of the extended attributes, one after the other.
fn attributes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        listed => listed?,
    };
    names.truncate(length);
    let mut all = names.clone();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value)?;
        all.extend(&value[..length]);
    }
    Ok(all)
}
