//! Makes of a copy of RAM what a snapshot keeps, after the guest runs again. Called by `snapshot::save`.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use zstd::bulk::Compressor;

use super::index::{self, Entry};
use super::pages::Pages;
use super::{CHUNK, PAGE, capture::next_data, offset_of, workers};
use crate::error::{Context, Result};
use crate::snapshot::Checksum;
use crate::snapshot::dir::write_error;

/// Level of zstd: the fastest by name. It makes a third of a guest's RAM; higher ones take twice as long for a tenth.
const LEVEL: i32 = 1;
/// Chunks that each thread works on between two writes. Bounds the memory in use: 4 MiB for each thread.
const TURN: usize = 4;

/// What one thread works with.
struct Worker {
    buffer: Vec<u8>,
    zstd: Option<Compressor<'static>>,
}

/// A chunk that was worked on; one without pages is all zero.
struct Done {
    entry: Entry,
    /// Its compressed pages, if they are to be compressed.
    packed: Vec<u8>,
}

/// Compresses `from`, a copy of RAM, into the empty file `ram`. Answers the index and the length of `ram`.
///
/// # Errors
/// `ResourceExhausted` on a full disk.
pub(in crate::snapshot) fn pack(from: &File, memory: u64, ram: &File) -> Result<(Vec<u8>, u64)> {
    let mut length = 0;
    let index = each_chunk(from, memory, Some(LEVEL), |done| {
        ram.write_all_at(&done.packed, length)
            .map_err(|error| write_error("Could not write the guest's RAM to the snapshot".into(), error))?;
        length += done.packed.len() as u64;
        Ok(())
    })?;
    Ok((index, length))
}

/// Makes holes of the zero pages in `ram`, a copy of RAM, which reads the same otherwise. Answers the index.
///
/// # Errors
/// When the file can't be read.
pub(in crate::snapshot) fn tidy_plain(ram: &File, memory: u64) -> Result<Vec<u8>> {
    each_chunk(ram, memory, None, |done| {
        punch(ram, done);
        Ok(())
    })
}

/// Works on all chunks with data, in parallel, and shows each to `then` in their order. Answers the index.
fn each_chunk(
    from: &File,
    memory: u64,
    level: Option<i32>,
    mut then: impl FnMut(&Done) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut team = (0..workers::count()).map(|_| Worker::new(level)).collect::<Result<Vec<_>>>()?;
    let mut entries = Vec::new();
    let mut next = 0;
    loop {
        let turn = chunks_with_data(from, memory, &mut next, team.len() * TURN)?;
        if turn.is_empty() {
            return Ok(index::encode(memory, &entries));
        }
        let shares = team.iter_mut().zip(turn.chunks(TURN));
        let done = workers::run(shares, |(worker, share)| {
            share.iter().map(|chunk| worker.work(from, *chunk)).collect::<Result<Vec<_>>>()
        })?;
        for done in done.iter().flatten() {
            then(done)?;
            if !done.entry.pages.is_empty() {
                entries.push(done.entry);
            }
        }
    }
}

/// The next `most` chunks from `next` on that are not holes.
fn chunks_with_data(from: &File, memory: u64, next: &mut u64, most: usize) -> Result<Vec<u32>> {
    let mut chunks = Vec::with_capacity(most);
    while chunks.len() < most {
        let data = next_data(from, *next).context(|| "Could not look for data in the guest's RAM".into())?;
        let Some(data) = data.filter(|data| *data < memory) else { break };
        let chunk = u32::try_from(data / CHUNK as u64).context(|| "The guest's RAM is too large".into())?;
        *next = offset_of(chunk) + CHUNK as u64;
        chunks.push(chunk);
    }
    Ok(chunks)
}

impl Worker {
    fn new(level: Option<i32>) -> Result<Self> {
        let zstd = level.map(Compressor::new).transpose().context(|| "Could not start zstd".into())?;
        Ok(Self { buffer: vec![0; CHUNK], zstd })
    }

    fn work(&mut self, from: &File, chunk: u32) -> Result<Done> {
        from.read_exact_at(&mut self.buffer, offset_of(chunk))
            .context(|| "Could not read the copy of the guest's RAM".into())?;
        let pages = present(&self.buffer);
        let data = compact(&mut self.buffer, pages);
        let packed = match &mut self.zstd {
            Some(zstd) if !pages.is_empty() => {
                zstd.compress(data).context(|| "Could not compress the guest's RAM".into())?
            }
            _ => Vec::new(),
        };
        let stored = if self.zstd.is_some() { &packed[..] } else { data };
        let length = u32::try_from(stored.len()).context(|| "A chunk of RAM is too long".into())?;
        Ok(Done { entry: Entry { chunk, length, pages, checksum: Checksum::of(stored) }, packed })
    }
}

/// The pages of a chunk that are not zero.
fn present(chunk: &[u8]) -> Pages {
    const ZERO: &[u8] = &[0; PAGE];
    let mut pages = Pages::default();
    for (number, page) in chunk.chunks(PAGE).enumerate().filter(|(_, page)| *page != ZERO) {
        debug_assert_eq!(page.len(), PAGE);
        pages.insert(number);
    }
    pages
}

/// Moves `pages` to the front of the chunk.
fn compact(chunk: &mut [u8], pages: Pages) -> &[u8] {
    let mut length = 0;
    for Range { start, end } in pages.runs() {
        chunk.copy_within(start..end, length);
        length += end - start;
    }
    &chunk[..length]
}

/// Gives the blocks of zero pages back. It only saves space, so a filesystem that can't is no failure.
fn punch(ram: &File, done: &Done) {
    let base = offset_of(done.entry.chunk);
    let mut start = 0;
    for run in done.entry.pages.runs().chain(std::iter::once(CHUNK..CHUNK)) {
        let (from, to) = (base + start as u64, base + run.start as u64);
        start = run.end;
        let allocated = next_data(ram, from).is_ok_and(|data| data.is_some_and(|data| data < to));
        if let (true, Ok(at), Ok(length)) = (allocated, i64::try_from(from), i64::try_from(to - from)) {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(ram, flags, at, length);
        }
    }
}
