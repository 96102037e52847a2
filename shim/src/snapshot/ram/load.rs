//! Reads RAM back: every chunk is checked in our own memory before a byte of it is used. Called by
//! `snapshot::open`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use zstd::bulk::Decompressor;

use super::index::{self, Entry, MAX_PACKED};
use super::{CHUNK, Form, offset_of, workers};
use crate::error::{Context, Error, Kind, Result};
use crate::snapshot::Checksum;
use crate::snapshot::dir::write_error;

/// Where RAM comes from.
#[derive(Debug)]
pub(in crate::snapshot) struct Source<'a> {
    /// The file `ram`.
    pub(in crate::snapshot) ram: &'a File,
    /// The bytes of `ram.index`, whose checksum was right.
    pub(in crate::snapshot) index: &'a [u8],
    pub(in crate::snapshot) form: Form,
    /// Length of `ram` as the manifest has it.
    pub(in crate::snapshot) length: u64,
    pub(in crate::snapshot) memory: u64,
}

/// Writes all pages into `into`, a file of holes of the size of RAM.
///
/// # Errors
/// `InvalidArgument` when `ram` was changed; `ResourceExhausted` when `into` has no space left.
pub(in crate::snapshot) fn load(source: &Source, into: &File) -> Result<()> {
    each_chunk(source, |entry, mut data| {
        for run in entry.pages.runs() {
            let (head, tail) = data.split_at(run.len());
            data = tail;
            into.write_all_at(head, offset_of(entry.chunk) + run.start as u64)
                .map_err(|error| write_error("Could not write the guest's RAM".into(), error))?;
        }
        Ok(())
    })
}

/// Reads all pages and checks them.
///
/// # Errors
/// `InvalidArgument` when `ram` was changed.
pub(in crate::snapshot) fn verify(source: &Source) -> Result<()> {
    each_chunk(source, |_, _| Ok(()))
}

/// Gives each chunk's pages, checked and one behind the other, to `then`, from several threads and in any order.
fn each_chunk(source: &Source, then: impl Fn(&Entry, &[u8]) -> Result<()> + Sync) -> Result<()> {
    let entries = index::decode(source.index, source.memory, source.form, source.length).map_err(|what| {
        Error::new(Kind::InvalidArgument, format!("The snapshot's ram.index is wrong: {what}"))
    })?;
    let places = places(&entries, source.form);
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    workers::run(vec![(); workers::count()], |()| {
        let mut reader = Reader::new(source)?;
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((entry, place)) = entries.get(number).zip(places.get(number)) else { break };
            let done = reader.read(entry, *place).and_then(|data| then(entry, data));
            if done.is_err() {
                failed.store(true, Ordering::Relaxed);
                return done;
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Where each chunk begins in `ram`.
fn places(entries: &[Entry], form: Form) -> Vec<u64> {
    let mut end = 0;
    let place = |entry: &Entry| {
        let start = end;
        end += u64::from(entry.length);
        match form {
            Form::Plain => offset_of(entry.chunk),
            Form::Packed => start,
        }
    };
    entries.iter().map(place).collect()
}

/// What one thread works with.
struct Reader<'a> {
    source: &'a Source<'a>,
    stored: Vec<u8>,
    /// For packed RAM.
    unpack: Option<(Decompressor<'static>, Vec<u8>)>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a Source<'a>) -> Result<Self> {
        let (length, unpack) = match source.form {
            Form::Plain => (CHUNK, None),
            Form::Packed => {
                let zstd = Decompressor::new().context(|| "Could not start zstd".into())?;
                (MAX_PACKED, Some((zstd, vec![0; CHUNK])))
            }
        };
        Ok(Self { source, stored: vec![0; length], unpack })
    }

    fn read(&mut self, entry: &Entry, place: u64) -> Result<&[u8]> {
        let damaged = |what: &str| {
            let text = format!("The snapshot's RAM is damaged: chunk {} {what}", entry.chunk);
            Error::new(Kind::InvalidArgument, text)
        };
        let stored = &mut self.stored[..entry.length as usize];
        let read = |piece: &mut [u8], at| match self.source.ram.read_exact_at(piece, at) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(damaged("ends too early")),
            read => read.context(|| "Could not read the snapshot's RAM".into()),
        };
        match self.source.form {
            Form::Packed => read(stored, place)?,
            Form::Plain => {
                let mut rest = &mut *stored;
                for run in entry.pages.runs() {
                    let (piece, tail) = rest.split_at_mut(run.len());
                    read(piece, place + run.start as u64)?;
                    rest = tail;
                }
            }
        }
        if Checksum::of(stored) != entry.checksum {
            return Err(damaged("does not match its checksum"));
        }
        let Some((zstd, pages)) = &mut self.unpack else { return Ok(stored) };
        // zstd gets exactly the space that the pages take, whatever the frame says that it holds.
        let pages = &mut pages[..entry.pages.bytes()];
        match zstd.decompress_to_buffer(stored, pages) {
            Ok(length) if length == pages.len() => Ok(pages),
            _ => Err(damaged("does not unpack to its pages")),
        }
    }
}
