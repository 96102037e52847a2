//! Lays down on a node what the runtime needs, and takes it away again. Called by `cargo xtask install`.
//!
//! An installation is one transaction; what was there before stays or comes back if it fails. Its record,
//! `/var/lib/microvm/install.json`, says what is ours: nothing else is ever removed, and what a person has edited is
//! theirs.

mod containerd;
mod in_use;
mod plan;
mod record;
mod remove;
mod transaction;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use containerd::Containerd;

use crate::assets::Assets;
use crate::fsx;
use plan::Item;
use record::{Kind, Record, within};
use transaction::Transaction;

/// What to install.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The shim's binary.
    pub shim: PathBuf,
    /// `microvmctl`.
    pub ctl: PathBuf,
    /// The guest, as the builder made it.
    pub assets: Assets,
    /// Text of the shim's config for a node that has none: `shim::config::template()`.
    pub config: String,
    /// The containerd of the node; see [`Containerd::detect`].
    pub containerd: Containerd,
    /// Version of the runtime, for the record.
    pub version: String,
}

/// What was done, and what is left for a person to do or know. Each line is a sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Files laid down or removed.
    pub done: Vec<String>,
    /// What a person must do or know.
    pub notes: Vec<String>,
}

/// Installs below `root`, which is `/` or the root of another system. Done again it changes nothing; done with other
/// parts it upgrades, and keeps old guest assets only while something runs on them or a snapshot names them.
///
/// # Errors
/// When a part is missing, the disk is full, a directory is in the way, or another installer is at work. What was there
/// before is there again; if not, the error says so.
pub fn install(root: &Path, parts: &Parts) -> Result<Report> {
    parts.assets.verify()?;
    let _lock = lock(root)?;
    let old = Record::read(root)?.unwrap_or_default();
    let registration = containerd::registration(parts.containerd, containerd_config(root, &old)?.as_deref())?;
    let mut report = Report { done: Vec::new(), notes: registration.notes.clone() };
    let (items, kept) = settle(root, plan::items(parts, &registration)?, &old, &mut report)?;

    let mut new = Record::new(&parts.version);
    new.entries = items.iter().map(Item::entry).chain(kept).collect();
    let changed: Vec<_> = items.iter().filter(|item| !is_there(root, item)).collect();
    for path in new.entries.iter().chain(&old.entries).map(|entry| &entry.path) {
        transaction::sweep(fsx::parent(&within(root, path)))?;
    }

    let mut transaction = Transaction::new(root);
    if let Err(error) = lay_down(root, &mut transaction, &changed, &mut new, &old) {
        return Err(undo(root, transaction, &old, error));
    }
    transaction.finish()?;
    report.done.extend(changed.iter().map(|item| format!("Installed {}", item.path.display())));
    remove::outdated(root, &mut new, &old, &mut report)?;
    new.write(root)?;
    Ok(report)
}

/// Takes away everything that [`install`] laid down below `root`, and the directories that it made if nothing else is
/// in them. What a person has edited stays, and so do assets that something needs: the report names them.
///
/// # Errors
/// When something can't be removed. Done again, it goes on from there.
pub fn uninstall(root: &Path) -> Result<Report> {
    let _lock = lock(root)?;
    let mut report = Report::default();
    match Record::read(root)? {
        Some(record) => remove::everything(root, record, &mut report)?,
        None => report.notes.push(format!("Nothing is installed in {}", root.display())),
    }
    Ok(report)
}

/// Only one installer at a time works on a root. The lock ends with the process.
fn lock(root: &Path) -> Result<File> {
    let what = || format!("Could not open the root {}", root.display());
    let directory = File::open(root).with_context(what)?;
    directory.try_lock().with_context(|| format!("Another installer is at work on {}", root.display()))?;
    Ok(directory)
}

/// containerd's config as a person wrote it; one that we made counts as none.
fn containerd_config(root: &Path, old: &Record) -> Result<Option<String>> {
    let path = within(root, Path::new(containerd::CONFIG));
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fsx::read(&path)?;
    let ours =
        old.find(Path::new(containerd::CONFIG)).is_some_and(|entry| entry.sha256 == fsx::sha256(&bytes));
    let text = String::from_utf8(bytes).with_context(|| format!("{} is no text", path.display()))?;
    Ok((!ours).then_some(text))
}

/// Items to lay down, and the entries of files that stay as a person edited them.
type Settled = (Vec<Item>, Vec<record::Entry>);

/// Turns items whose place holds a person's own text into `.new` files beside it.
fn settle(root: &Path, items: Vec<Item>, old: &Record, report: &mut Report) -> Result<Settled> {
    let mut settled = Vec::new();
    let mut kept = Vec::new();
    for item in items {
        let place = within(root, &item.path);
        if item.kind != Kind::Config || !place.exists() {
            settled.push(item);
            continue;
        }
        let is = fsx::sha256(&fsx::read(&place)?);
        let recorded = old.find(&item.path);
        if is == item.sha256 || recorded.is_some_and(|entry| entry.sha256 == is) {
            settled.push(item);
            continue;
        }
        kept.extend(recorded.cloned());
        if recorded.is_some_and(|entry| entry.sha256 == item.sha256) {
            continue;
        }
        let (theirs, new) = (item.path.clone(), item.beside());
        let note =
            format!("{} was edited and stays; compare it with {}", theirs.display(), new.path.display());
        report.notes.push(note);
        settled.push(new);
    }
    Ok((settled, kept))
}

/// Whether the item lies in its place already.
fn is_there(root: &Path, item: &Item) -> bool {
    let place = within(root, &item.path);
    if item.kind == Kind::Link {
        return fs::read_link(&place)
            .is_ok_and(|to| fsx::sha256(to.as_os_str().as_encoded_bytes()) == item.sha256);
    }
    place.is_file() && fsx::sha256_of(&place).is_ok_and(|is| is == item.sha256) && has_mode(&place, item.mode)
}

fn has_mode(place: &Path, mode: u32) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(place).is_ok_and(|metadata| metadata.permissions().mode() & 0o7777 == mode)
}

/// Stages everything, records old and new together, and only then changes what others see.
fn lay_down(
    root: &Path,
    transaction: &mut Transaction<'_>,
    items: &[&Item],
    new: &mut Record,
    old: &Record,
) -> Result<()> {
    transaction.directory(fsx::parent(Path::new(record::PATH)))?;
    for item in items {
        transaction.stage(item)?;
    }
    new.directories.clone_from(&old.directories);
    new.directories.extend_from_slice(transaction.directories());
    new.with(old).write(root)?;
    transaction.commit()
}

/// Brings back what was there, and adds to the error what could not be.
fn undo(root: &Path, transaction: Transaction<'_>, old: &Record, error: anyhow::Error) -> anyhow::Error {
    let mut failures = Vec::new();
    let restored = if *old == Record::default() { remove::record(root) } else { old.write(root) };
    failures.extend(restored.err());
    failures.extend(transaction.undo());
    if failures.is_empty() {
        return error.context("Could not install; everything is as before");
    }
    let failures: Vec<_> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    error.context(format!("Could not install, and could not bring everything back ({})", failures.join("; ")))
}

#[cfg(test)]
mod tests;
