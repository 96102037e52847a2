//! Removal of what is recorded: the rest of an older version, or everything. Called by the installer.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::plan::GUEST;
use super::record::{self, Entry, Kind, Record, within};
use super::{Report, in_use, transaction};
use crate::fsx;

/// Removes what `old` has and `new` has not. What must stay goes on in the record.
pub(super) fn outdated(root: &Path, new: &mut Record, old: &Record, report: &mut Report) -> Result<()> {
    let (gone, stay): (Vec<_>, Vec<_>) =
        split(root, old.entries.iter().filter(|entry| new.find(&entry.path).is_none()), report)?;
    new.entries.extend(stay);
    for entry in &gone {
        remove(root, entry, report)?;
    }
    empty_directories(root, new)
}

/// Removes all that is recorded, and the record itself unless something must stay that is ours.
pub(super) fn everything(root: &Path, mut record: Record, report: &mut Report) -> Result<()> {
    for entry in &record.entries {
        transaction::sweep(fsx::parent(&within(root, &entry.path)))?;
    }
    let (gone, stay) = split(root, record.entries.iter(), report)?;
    // The last in, containerd's drop-in, goes first.
    for entry in gone.iter().rev() {
        remove(root, entry, report)?;
    }
    record.entries = stay;
    if !record.entries.is_empty() {
        empty_directories(root, &mut record)?;
        return record.write(root);
    }
    self::record(root)?;
    empty_directories(root, &mut record)
}

/// Removes the record, if there is one.
pub(super) fn record(root: &Path) -> Result<()> {
    let path = within(root, Path::new(record::PATH));
    gone(fs::remove_file(&path)).with_context(|| format!("Could not remove {}", path.display()))
}

/// What goes, and what stays because something needs it. Edited files are neither: they are no longer ours.
fn split<'a>(
    root: &Path,
    entries: impl Iterator<Item = &'a Entry>,
    report: &mut Report,
) -> Result<(Vec<Entry>, Vec<Entry>)> {
    let (mut gone, mut stay) = (Vec::new(), Vec::new());
    let mut noted = BTreeSet::new();
    for entry in entries {
        if is_edited(root, entry)? {
            report.notes.push(format!("{} was edited and stays", entry.path.display()));
            continue;
        }
        let Some((version, user)) = needed(root, entry) else {
            gone.push(entry.clone());
            continue;
        };
        if noted.insert(version.clone()) {
            let note = format!("{GUEST}/{version} stays, because {user} needs it; the next run removes it");
            report.notes.push(note);
        }
        stay.push(entry.clone());
    }
    Ok((gone, stay))
}

fn is_edited(root: &Path, entry: &Entry) -> Result<bool> {
    let place = within(root, &entry.path);
    if entry.kind != Kind::Config || !place.exists() {
        return Ok(false);
    }
    Ok(fsx::sha256(&fsx::read(&place)?) != entry.sha256)
}

/// The version of guest assets that a file belongs to and what needs it, if something does.
fn needed(root: &Path, entry: &Entry) -> Option<(String, String)> {
    let folder = entry.path.parent()?;
    if entry.kind != Kind::File || folder.parent() != Some(Path::new(GUEST)) {
        return None;
    }
    let version = folder.file_name()?.to_str()?;
    Some((version.into(), in_use::by(root, version)?))
}

fn remove(root: &Path, entry: &Entry, report: &mut Report) -> Result<()> {
    let place = within(root, &entry.path);
    gone(fs::remove_file(&place)).with_context(|| format!("Could not remove {}", place.display()))?;
    report.done.push(format!("Removed {}", entry.path.display()));
    Ok(())
}

/// Removes the directories that we made and that hold nothing any more; those that hold something stay recorded.
fn empty_directories(root: &Path, record: &mut Record) -> Result<()> {
    let mut left = Vec::new();
    for path in record.directories.iter().rev() {
        if !remove_empty(&within(root, path))? {
            left.push(path.clone());
        }
    }
    left.reverse();
    record.directories = left;
    Ok(())
}

/// Whether the directory is gone.
fn remove_empty(place: &PathBuf) -> Result<bool> {
    match fs::remove_dir(place) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
        result => gone(result)
            .map(|()| true)
            .with_context(|| format!("Could not remove the directory {}", place.display())),
    }
}

/// Takes it for a success when the thing was not there.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
