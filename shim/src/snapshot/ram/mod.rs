//! Guest RAM in a snapshot. RAM is cut into chunks of 1 MiB; `ram.index` says for each chunk which of its pages
//! are not zero, how long they are in `ram`, and their checksum; everything else is zero and stored nowhere.
//! Called by `snapshot::save` and `snapshot::open`.

mod capture;
pub(super) mod index;
mod load;
mod pages;
mod store;
mod workers;

use serde::Serialize;

pub(super) use capture::capture;
pub(super) use load::{Source, load, verify};
pub(super) use store::{pack, tidy_plain};

/// Most guest RAM in bytes that the format takes.
pub(super) const MAX_MEMORY: u64 = 1 << 40;
/// Bytes of a chunk, the unit of checksums and compression.
const CHUNK: usize = 1 << 20;
/// Bytes of a page, the unit of what is left out.
const PAGE: usize = 4096;

/// How the file `ram` holds the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// At their own places, with holes between them: no work at a restore, but copies that fill holes grow.
    Plain,
    /// One behind the other, each chunk compressed: small, and whoever copies it can't make it grow.
    Packed,
}

/// `chunk` as an offset in RAM.
fn offset_of(chunk: u32) -> u64 {
    u64::from(chunk) * CHUNK as u64
}
