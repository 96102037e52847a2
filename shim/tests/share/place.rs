//! A sandbox directory with its ledger, and what a test looks at around it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shim::guest::GuestName;
use shim::ledger::Ledger;
use shim::share::Share;
use shim::task::Mount;
use shim::testing::ledger;

/// A share in a directory of its own. End it with [`Place::end`].
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) sandbox: PathBuf,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) share: Share,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = dir.path().join("sandbox");
        let ledger = ledger(&sandbox).unwrap();
        let share = Share::prepare(&sandbox, &ledger).unwrap();
        Place { dir, sandbox, ledger, share }
    }

    /// A new directory outside the sandbox, with files of this text.
    pub(crate) fn tree(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let tree = self.dir.path().join(name);
        fs::create_dir_all(&tree).unwrap();
        for (path, text) in files {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    /// Where the daemon of images shows a path of the test's container.
    pub(crate) fn image(&self, path: &str) -> PathBuf {
        self.sandbox.join("share/images/web@1/rootfs").join(path)
    }

    /// Where the daemon of volumes shows one of the test's container.
    pub(crate) fn volume(&self, index: u32) -> PathBuf {
        self.sandbox.join("share/volumes/web@1").join(index.to_string())
    }

    /// Undoes everything as a failed start would, and checks that this is enough.
    pub(crate) fn end(self) {
        let failures: Vec<_> = self.ledger.release_all().iter().map(shim::Error::chain).collect();
        assert_eq!(failures, Vec::<String>::new());
        assert!(!self.sandbox.exists());
    }
}

pub(crate) fn web() -> GuestName {
    GuestName::from_cri("web")
}

pub(crate) fn overlay(options: &[String]) -> Mount {
    Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options: options.into() }
}

pub(crate) fn bind(source: &Path) -> Mount {
    let source = source.to_str().unwrap().into();
    Mount { kind: "bind".into(), source, target: String::new(), options: vec!["rbind".into(), "rw".into()] }
}

/// Paths, modes, sizes, times and texts of everything below `root`.
pub(crate) fn fingerprint(root: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let text = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if meta.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (meta.mode(), meta.ino(), meta.mtime_nsec(), text));
    }
    found
}

/// Mount points of this process, in order.
pub(crate) fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(String::from).collect()
}

/// Children of a process, zombies too, by all its threads.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// Whether writing to a path fails because its filesystem is read-only.
pub(crate) fn is_read_only(path: &Path) -> bool {
    let error = match path.is_dir() {
        true => fs::write(path.join("new"), "x").err(),
        false => fs::OpenOptions::new().append(true).open(path).err(),
    };
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
}
