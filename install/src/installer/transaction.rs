//! A set of files that is laid down as a whole: everything is written beside its place first, then renamed into it, and
//! whatever fails, what was there before is there again. Called by the installer.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::plan::{Content, Item};
use super::record::within;
use crate::fsx;

/// What the names of files start with that are not in their place yet, or not any more.
const PREFIX: &str = ".microvm-install-";

/// A transaction: stage, commit, then either finish or undo.
pub(super) struct Transaction<'a> {
    root: &'a Path,
    /// Directories that were made, as a program in the root sees them.
    directories: Vec<PathBuf>,
    staged: Vec<Staged>,
}

struct Staged {
    target: PathBuf,
    fresh: PathBuf,
    /// The old file under another name.
    old: Option<PathBuf>,
    in_place: bool,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self { root, directories: Vec::new(), staged: Vec::new() }
    }

    /// Directories that this transaction has made.
    pub(super) fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Makes a directory and those above it.
    pub(super) fn directory(&mut self, path: &Path) -> Result<()> {
        let place = within(self.root, path);
        if place.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        fs::create_dir(&place)
            .with_context(|| format!("Could not make the directory {}", place.display()))?;
        self.directories.push(path.to_owned());
        Ok(())
    }

    /// Writes the new file beside its place.
    pub(super) fn stage(&mut self, item: &Item) -> Result<()> {
        let target = within(self.root, &item.path);
        let what = || format!("Could not write {}", target.display());
        self.directory(fsx::parent(&item.path))?;
        ensure!(!target.is_dir() || target.is_symlink(), "{} is a directory; move it away", target.display());
        let fresh = fresh_name(fsx::parent(&target), &item.content, item.mode).with_context(what)?;
        self.staged.push(Staged { target, fresh, old: None, in_place: false });
        Ok(())
    }

    /// Puts everything in its place, in the order of staging.
    pub(super) fn commit(&mut self) -> Result<()> {
        for staged in &mut self.staged {
            staged.swap().with_context(|| format!("Could not replace {}", staged.target.display()))?;
        }
        for staged in &self.staged {
            fsx::sync_directory(fsx::parent(&staged.target))?;
        }
        Ok(())
    }

    /// Drops the old files; from here on there is no way back.
    pub(super) fn finish(self) -> Result<()> {
        for old in self.staged.into_iter().filter_map(|staged| staged.old) {
            fs::remove_file(&old).with_context(|| format!("Could not remove {}", old.display()))?;
        }
        Ok(())
    }

    /// Brings the old files back and removes what was made. Goes on after a failure; answers them all.
    pub(super) fn undo(self) -> Vec<anyhow::Error> {
        let mut failures = Vec::new();
        for staged in self.staged.iter().rev() {
            if let Err(error) = staged.undo() {
                let what = format!("Could not bring {} back", staged.target.display());
                failures.push(anyhow::Error::new(error).context(what));
            }
        }
        for path in self.directories.iter().rev() {
            let place = within(self.root, path);
            if let Err(error) = fs::remove_dir(&place) {
                failures
                    .push(anyhow::Error::new(error).context(format!("Could not remove {}", place.display())));
            }
        }
        failures
    }
}

impl Staged {
    /// The old file keeps a second name, so that its place is never empty.
    fn swap(&mut self) -> io::Result<()> {
        if self.target.symlink_metadata().is_ok() {
            let beside = fsx::parent(&self.target);
            let link = |name: &Path| fs::hard_link(&self.target, name);
            self.old = Some(keep(tempfile::Builder::new().prefix(PREFIX).make_in(beside, link)?)?);
        }
        fs::rename(&self.fresh, &self.target)?;
        self.in_place = true;
        Ok(())
    }

    fn undo(&self) -> io::Result<()> {
        match (&self.old, self.in_place) {
            (Some(old), true) => fs::rename(old, &self.target),
            (Some(old), false) => fs::remove_file(old).and_then(|()| fs::remove_file(&self.fresh)),
            (None, true) => fs::remove_file(&self.target),
            (None, false) => fs::remove_file(&self.fresh),
        }
    }
}

/// Removes what an installer that was killed has left in a directory.
pub(super) fn sweep(directory: &Path) -> Result<()> {
    let what = || format!("Could not list {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(what)?,
    };
    for entry in entries {
        let entry = entry.with_context(what)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs::remove_file(entry.path())
                .with_context(|| format!("Could not remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// A file of this content under a name that nobody else uses.
fn fresh_name(directory: &Path, content: &Content, mode: u32) -> io::Result<PathBuf> {
    let mut names = tempfile::Builder::new();
    names.prefix(PREFIX);
    if let Content::Link(to) = content {
        return keep(names.make_in(directory, |path| symlink(to, path))?);
    }
    let mut file = names.tempfile_in(directory)?;
    match content {
        Content::Copy(source) => io::copy(&mut File::open(source)?, &mut file)?,
        Content::Text(text) => io::copy(&mut text.as_bytes(), &mut file)?,
        Content::Link(_) => 0,
    };
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.into_temp_path().keep().map_err(Into::into)
}

fn keep<F>(file: tempfile::NamedTempFile<F>) -> io::Result<PathBuf> {
    file.into_temp_path().keep().map_err(Into::into)
}
