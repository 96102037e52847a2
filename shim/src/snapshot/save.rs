//! Writes a snapshot in two steps, so that the guest stands still for the first one only. Called by `sandbox`'s
//! checkpoint and by `store`'s import.
//!
//! Either the directory holds a whole, durable snapshot in the end, or it is as empty as it was.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use super::dir::{Dir, write_error};
use super::manifest::{self, Contents, FileRecord, Manifest, RamRecord};
use super::ram::{self, Form};
use super::{Checksum, MANIFEST, RAM, RAM_INDEX, checksum};
use crate::error::{Context, Error, Kind, Result};

/// The part of the host's available memory that one copy of RAM may take for the second that packing takes.
const SHARE: u64 = 4;

/// A snapshot that is being written. It ends with [`Save::finish`] or [`Save::abort`], never by dropping it.
#[derive(Debug)]
#[must_use = "an unfinished save leaves files behind"]
pub struct Save {
    dir: Dir,
    /// Whether the directory was made by us and goes if the save fails.
    made: bool,
    form: Form,
    captured: Option<Captured>,
}

/// The copy of RAM, taken while the guest stood still.
#[derive(Debug)]
struct Captured {
    file: File,
    memory: u64,
}

/// Empties a directory in which a snapshot was begun by somebody who is gone, unless the snapshot is whole: its manifest is
/// written last. Whoever asks for this knows that the directory was empty before.
///
/// # Errors
/// The first file that can't be removed, after all others were. A directory that is gone is a success.
pub fn clear_unfinished(dir: &Path) -> Result<()> {
    let opened = match Dir::open(dir) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        opened => opened?,
    };
    if opened.names()?.iter().any(|name| name == MANIFEST) {
        return Ok(());
    }
    Error::first_of(opened.clear())
}

/// What a save wrote.
#[derive(Debug, Clone)]
pub struct FinishedSave {
    /// The manifest as it stands in the directory.
    pub manifest: Manifest,
    /// Bytes on disk of all files.
    pub bytes: u64,
}

impl Save {
    /// Begins a snapshot in `dir`, which is made if it is missing and must be empty otherwise.
    ///
    /// # Errors
    /// `FailedPrecondition` when there is something in `dir`.
    pub fn begin(dir: &Path, form: Form) -> Result<Self> {
        let made = make(dir)?;
        let opened = Dir::open(dir)?;
        let names = opened.names()?;
        if let Some(name) = names.first() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("The directory {} for a snapshot is not empty: it has {name:?}", dir.display()),
            ));
        }
        Ok(Self { dir: opened, made, form, captured: None })
    }

    /// The directory, in which the VMM writes its device state.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Copies the RAM file of the guest, which must stand still; it may run on after this. The copy is the
    /// snapshot's `ram` (plain), or a file without a name, as large as the RAM that the guest touched, until
    /// [`Save::finish`] has packed it: in memory where the host has plenty, which is several times faster, else beside
    /// it. Nothing is copied where a filesystem shares blocks.
    ///
    /// # Errors
    /// `DeadlineExceeded` at `deadline`, `ResourceExhausted` on a full disk. Then call [`Save::abort`].
    pub fn capture_ram(&mut self, ram: &Path, deadline: Instant) -> Result<()> {
        let what = || format!("Could not open the guest's RAM {}", ram.display());
        let from = File::open(ram).context(what)?;
        let memory = from.metadata().context(what)?.len();
        let in_memory = if self.form == Form::Packed { memory_file(&from) } else { None };
        let file = in_memory.map_or_else(|| self.copy_file(), Ok)?;
        ram::capture(&from, &file, memory, deadline)?;
        self.captured = Some(Captured { file, memory });
        Ok(())
    }

    /// An empty file for a copy of RAM.
    fn copy_file(&self) -> Result<File> {
        match self.form {
            Form::Plain => self.dir.create_file(RAM),
            Form::Packed => self.dir.scratch_file("ram.copy"),
        }
    }

    /// Takes RAM from `write`, which gets an empty file of the size of RAM, instead of from a guest.
    pub(super) fn fill_ram(&mut self, memory: u64, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
        let file = self.copy_file()?;
        file.set_len(memory).map_err(|error| write_error("Could not size the copy of RAM".into(), error))?;
        write(&file)?;
        self.captured = Some(Captured { file, memory });
        Ok(())
    }

    /// Writes everything else: packs RAM, takes checksums of `state`, the VMM's files in the directory, makes all
    /// durable, and writes the manifest last. On failure the directory is emptied.
    ///
    /// # Errors
    /// `ResourceExhausted` on a full disk; `InvalidArgument` when `contents` is nothing that a restore would take.
    pub fn finish(mut self, contents: Contents, state: &[String]) -> Result<FinishedSave> {
        match self.write(contents, state) {
            Ok(done) => Ok(done),
            Err(error) => Err(error.with_cleanup(self.undo())),
        }
    }

    /// Gives up: the directory is emptied, and removed if it was made for this.
    ///
    /// # Errors
    /// When a file can't be removed; the others are gone.
    pub fn abort(self) -> Result<()> {
        Error::first_of(self.undo())
    }

    fn write(&mut self, contents: Contents, state: &[String]) -> Result<FinishedSave> {
        let captured = self.captured.take().ok_or_else(|| {
            Error::new(Kind::FailedPrecondition, "The guest's RAM was not captured before the snapshot's end")
        })?;
        if captured.memory != contents.machine.memory {
            let (have, want) = (captured.memory, contents.machine.memory);
            let text = format!("The guest's RAM file has {have} bytes, the machine {want}");
            return Err(Error::new(Kind::Internal, text));
        }
        let ram = self.write_ram(&captured)?;
        let mut files = state.iter().map(|name| self.record(name)).collect::<Result<Vec<_>>>()?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest { contents, ram, files };
        self.write_file(MANIFEST, &manifest::render(&manifest)?)?;
        self.nothing_else(&manifest)?;
        self.dir.sync()?;
        let bytes = self.dir.disk_bytes()?;
        Ok(FinishedSave { manifest, bytes })
    }

    fn write_ram(&self, captured: &Captured) -> Result<RamRecord> {
        let Captured { file, memory } = captured;
        let (index, length) = match self.form {
            Form::Plain => {
                let index = ram::tidy_plain(file, *memory)?;
                sync(file, RAM)?;
                (index, *memory)
            }
            Form::Packed => {
                let packed = self.dir.create_file(RAM)?;
                let done = ram::pack(file, *memory, &packed)?;
                sync(&packed, RAM)?;
                done
            }
        };
        self.write_file(RAM_INDEX, &index)?;
        let (form, index_length) = (self.form, index.len() as u64);
        Ok(RamRecord { form, length, index_length, index: Checksum::of(&index) })
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut file = self.dir.create_file(name)?;
        file.write_all(bytes).map_err(|error| write_error(format!("Could not write {name}"), error))?;
        sync(&file, name)
    }

    fn record(&self, name: &str) -> Result<FileRecord> {
        let file = self.dir.open_file(name)?;
        let mut length = 0;
        let checksum = checksum::stream(&file, |piece| {
            length += piece.len() as u64;
            Ok(())
        });
        let checksum = checksum.context(|| format!("Could not read {name}"))?;
        sync(&file, name)?;
        Ok(FileRecord { name: name.into(), length, checksum })
    }

    /// A VMM that wrote more than it said would make a snapshot that no restore takes.
    fn nothing_else(&self, manifest: &Manifest) -> Result<()> {
        let known = manifest.file_names();
        let names = self.dir.names()?;
        match names.iter().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(self.dir.invalid(&format!("has {name:?}, which nobody knows"))),
        }
    }

    fn undo(&self) -> Vec<Error> {
        let mut failures = self.dir.clear();
        if self.made && failures.is_empty() {
            let path = self.dir.path();
            let removed =
                std::fs::remove_dir(path).context(|| format!("Could not remove {}", path.display()));
            failures.extend(removed.err());
        }
        failures
    }
}

/// Makes the directory if it is missing; whether it did.
fn make(dir: &Path) -> Result<bool> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => {
            Err(write_error(format!("Could not make the directory {} for a snapshot", dir.display()), error))
        }
    }
}

/// A file in memory for a copy of `ram`; none if the copy would take more than a part of what the host has left.
fn memory_file(ram: &File) -> Option<File> {
    let needed = ram.metadata().ok()?.blocks() * 512;
    if needed > available_memory()? / SHARE {
        return None;
    }
    let made = rustix::fs::memfd_create("ram.copy", rustix::fs::MemfdFlags::CLOEXEC);
    made.inspect_err(|error| log::debug!("No file in memory: {error}")).ok().map(File::from)
}

/// Bytes that the host could give to programs without swapping.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn sync(file: &File, name: &str) -> Result<()> {
    file.sync_all().map_err(|error| write_error(format!("Could not sync {name}"), error))
}
