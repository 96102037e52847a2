//! Opens a snapshot that may come from anywhere, and takes it apart. Called by `sandbox`'s restore, by `store` and
//! by `microvmctl`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::dir::{Dir, write_error};
use super::manifest::{self, FileRecord, Manifest};
use super::ram::{self, Source};
use super::{Checksum, MANIFEST, RAM, RAM_INDEX, checksum};
use crate::error::{Context, Error, Kind, Result};

/// An open snapshot: its manifest is checked and its files are those that the manifest names, each a regular file
/// of the right length. What is in them is checked while it is read. The files stay usable when the directory is
/// removed.
#[derive(Debug)]
pub struct Snapshot {
    dir: Dir,
    manifest: Manifest,
    files: BTreeMap<String, File>,
}

impl Snapshot {
    /// Opens the snapshot in the directory `dir`, which is not a symbolic link.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory; `FailedPrecondition` for another version of the format;
    /// `InvalidArgument` for a directory that is anything but a whole snapshot of ours, naming what is wrong.
    pub fn open(dir: &Path) -> Result<Self> {
        let dir = Dir::open(dir)?;
        let about = || format!("Could not open the snapshot {}", dir.path().display());
        let manifest = read_manifest(&dir).context(about)?;
        let names = dir.names()?;
        let known = manifest.file_names();
        if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(dir.invalid(&format!("has {name:?}, which its manifest does not name")));
        }
        let mut files = BTreeMap::new();
        for (name, length) in manifest.file_lengths() {
            let file = dir.open_file(name)?;
            let real = file.metadata().context(about)?.len();
            if real != length {
                return Err(
                    dir.invalid(&format!("has {name:?} with {real} bytes, its manifest says {length}"))
                );
            }
            files.insert(name.to_owned(), file);
        }
        Ok(Self { dir, manifest, files })
    }

    /// What the snapshot says about itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes on disk of its files.
    ///
    /// # Errors
    /// When they can't be looked at any more.
    pub fn disk_bytes(&self) -> Result<u64> {
        self.dir.disk_bytes()
    }

    /// Copies the VMM's device state into the directory `into`, which nobody else can write, and answers the names
    /// of the files. They are checked while they are copied, so the VMM reads what was checked.
    ///
    /// # Errors
    /// `InvalidArgument` when a file was changed. What was copied by then stays; `into` is the caller's.
    pub fn state_into(&self, into: &Path) -> Result<Vec<String>> {
        let into = Dir::open(into)?;
        let state = &self.manifest.files;
        state.iter().map(|record| self.copy_file(record, &into).map(|()| record.name.clone())).collect()
    }

    /// Fills the file `into`, which has the size of the guest's RAM, with it: all else in `into` becomes zero.
    ///
    /// # Errors
    /// `InvalidArgument` when the snapshot was changed, `ResourceExhausted` when there is no space left. Then
    /// `into` holds a part of it.
    pub fn restore_ram(&self, into: &Path) -> Result<()> {
        let what = || format!("Could not open the guest's RAM {}", into.display());
        let mut options = OpenOptions::new();
        let into = options.write(true).custom_flags(libc::O_NOFOLLOW).open(into).context(what)?;
        let memory = self.manifest.contents.machine.memory;
        let length = into.metadata().context(what)?.len();
        if length != memory {
            let text = format!("The guest's RAM file has {length} bytes, the snapshot {memory}");
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        into.set_len(0)
            .and_then(|()| into.set_len(memory))
            .context(|| "Could not empty the guest's RAM".into())?;
        self.ram_to(&into)
    }

    /// As above, for an open file of holes.
    pub(super) fn ram_to(&self, into: &File) -> Result<()> {
        let index = self.index()?;
        ram::load(&self.source(&index)?, into)
    }

    /// Reads everything and checks it.
    ///
    /// # Errors
    /// `InvalidArgument` naming the first file that was changed.
    pub fn verify(&self) -> Result<()> {
        for record in &self.manifest.files {
            self.read_file(record, &mut |_| Ok(()))?;
        }
        let index = self.index()?;
        ram::verify(&self.source(&index)?)
    }

    fn source<'a>(&'a self, index: &'a [u8]) -> Result<Source<'a>> {
        let ram = self.manifest.ram;
        let memory = self.manifest.contents.machine.memory;
        Ok(Source { ram: self.file(RAM)?, index, form: ram.form, length: ram.length, memory })
    }

    fn index(&self) -> Result<Vec<u8>> {
        let record = self.manifest.ram;
        let mut index = Vec::new();
        read_at_most(self.file(RAM_INDEX)?, record.index_length, &mut index)
            .context(|| format!("Could not read {RAM_INDEX} of the snapshot"))?;
        if Checksum::of(&index) != record.index {
            return Err(self.dir.invalid(&format!("has {RAM_INDEX:?}, which was changed")));
        }
        Ok(index)
    }

    fn copy_file(&self, record: &FileRecord, into: &Dir) -> Result<()> {
        let mut to = into.create_file(&record.name)?;
        self.read_file(record, &mut |piece| to.write_all(piece))
    }

    fn read_file(&self, record: &FileRecord, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let mut left = record.length;
        let found = checksum::stream(self.file(&record.name)?, |piece| {
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| io::Error::other("the file grew"))?;
            to(piece)
        });
        let found = found.map_err(|error| write_error(format!("Could not copy {}", record.name), error))?;
        if found != record.checksum || left > 0 {
            return Err(self.dir.invalid(&format!("has {:?}, which was changed", record.name)));
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<&File> {
        self.files.get(name).ok_or_else(|| self.dir.invalid(&format!("lacks the file {name:?}")))
    }
}

fn read_manifest(dir: &Dir) -> Result<Manifest> {
    let file = dir.open_file(MANIFEST)?;
    let mut text = Vec::new();
    read_at_most(&file, manifest::MAX_BYTES, &mut text).kind(Kind::InvalidArgument, || {
        format!("Could not read the manifest, of which {} bytes are read at most", manifest::MAX_BYTES)
    })?;
    manifest::parse(&text)
}

/// Reads a whole file from its beginning, unless it is longer than `most`.
fn read_at_most(mut file: &File, most: u64, into: &mut Vec<u8>) -> io::Result<()> {
    io::Seek::rewind(&mut file)?;
    file.take(most + 1).read_to_end(into)?;
    if into.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {most} bytes")));
    }
    Ok(())
}
