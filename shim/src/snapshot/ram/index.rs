//! The file `ram.index`: a header of 32 bytes, then one entry of 72 bytes for each chunk that is not all zero, in
//! their order, all little endian. Called by the rest of `ram`, and by `manifest` for the bounds.
//!
//! | header | | entry | |
//! |---|---|---|---|
//! | 0..8 | `MVMRAMIX` | 0..4 | number of the chunk |
//! | 8..12 | bytes of a page | 4..8 | its length in `ram` |
//! | 12..16 | bytes of a chunk | 8..40 | which of its pages are there, lowest bit first |
//! | 16..24 | bytes of RAM | 40..72 | BLAKE3 of what is in `ram` |
//! | 24..32 | number of entries | | |

use super::pages::{self, Pages};
use super::{CHUNK, Form, PAGE};
use crate::snapshot::Checksum;

const MAGIC: &[u8; 8] = b"MVMRAMIX";
/// Bytes before the first entry.
pub(in crate::snapshot) const HEADER: u64 = 32;
const ENTRY: usize = 8 + pages::BYTES + 32;
/// Most that zstd makes of one chunk; its own bound is 4 KiB and a few bytes more than the chunk.
pub(super) const MAX_PACKED: usize = CHUNK + (8 << 10);

/// One chunk that is not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) chunk: u32,
    pub(super) length: u32,
    pub(super) pages: Pages,
    pub(super) checksum: Checksum,
}

/// Longest index of so much RAM.
pub(in crate::snapshot) fn max_length(memory: u64) -> u64 {
    HEADER + memory / CHUNK as u64 * ENTRY as u64
}

/// Longest packed RAM.
pub(in crate::snapshot) fn max_packed(memory: u64) -> u64 {
    memory / CHUNK as u64 * MAX_PACKED as u64
}

pub(super) fn encode(memory: u64, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::try_from(HEADER).unwrap_or(0) + entries.len() * ENTRY);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&word(PAGE).to_le_bytes());
    bytes.extend_from_slice(&word(CHUNK).to_le_bytes());
    bytes.extend_from_slice(&memory.to_le_bytes());
    bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
    for entry in entries {
        bytes.extend_from_slice(&entry.chunk.to_le_bytes());
        bytes.extend_from_slice(&entry.length.to_le_bytes());
        bytes.extend_from_slice(&entry.pages.to_bytes());
        bytes.extend_from_slice(entry.checksum.as_bytes());
    }
    bytes
}

/// Reads an index and checks everything in it against the manifest; what is wrong otherwise.
pub(super) fn decode(bytes: &[u8], memory: u64, form: Form, length: u64) -> Result<Vec<Entry>, String> {
    let mut rest = bytes;
    let same = take(&mut rest)? == *MAGIC
        && u32::from_le_bytes(take(&mut rest)?) == word(PAGE)
        && u32::from_le_bytes(take(&mut rest)?) == word(CHUNK)
        && u64::from_le_bytes(take(&mut rest)?) == memory;
    if !same {
        return Err("its header is not the one for this machine".into());
    }
    let count = u64::from_le_bytes(take(&mut rest)?);
    if count > memory / CHUNK as u64 || count.checked_mul(ENTRY as u64) != Some(rest.len() as u64) {
        return Err(format!("it says that it has {count} entries, its length says otherwise"));
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(rest.len() / ENTRY);
    let mut total = 0;
    while !rest.is_empty() {
        let entry = entry(&mut rest)?;
        let chunks = memory / CHUNK as u64;
        let ordered = entries.last().is_none_or(|last| last.chunk < entry.chunk);
        if !ordered || u64::from(entry.chunk) >= chunks {
            return Err(format!("chunk {} is out of order or beyond the end of RAM", entry.chunk));
        }
        let stored = entry.length as usize;
        let fits = match form {
            Form::Plain => stored == entry.pages.bytes(),
            Form::Packed => (1..=MAX_PACKED).contains(&stored),
        };
        if entry.pages.is_empty() || !fits {
            return Err(format!("chunk {} can't be {stored} bytes long", entry.chunk));
        }
        total += u64::from(entry.length);
        entries.push(entry);
    }
    if form == Form::Packed && total != length {
        return Err(format!("its chunks are {total} bytes, `ram` is {length}"));
    }
    Ok(entries)
}

fn entry(rest: &mut &[u8]) -> Result<Entry, String> {
    let chunk = u32::from_le_bytes(take(rest)?);
    let length = u32::from_le_bytes(take(rest)?);
    let pages = Pages::from_bytes(take(rest)?);
    Ok(Entry { chunk, length, pages, checksum: Checksum::from_bytes(take(rest)?) })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, tail) = rest.split_first_chunk().ok_or("it ends too early")?;
    *rest = tail;
    Ok(*head)
}

/// Page and chunk sizes fit.
fn word(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some() -> Vec<Entry> {
        let mut pages = Pages::default();
        pages.insert(3);
        let checksum = Checksum::of(b"x");
        [1, 7].map(|chunk| Entry { chunk, length: 4096, pages, checksum }).to_vec()
    }

    #[test]
    fn index_is_read_as_written() {
        let bytes = encode(16 << 20, &some());
        assert_eq!(bytes.len() as u64, HEADER + 2 * ENTRY as u64);
        assert_eq!(decode(&bytes, 16 << 20, Form::Plain, 16 << 20), Ok(some()));
        assert_eq!(decode(&bytes, 16 << 20, Form::Packed, 8192), Ok(some()));
    }

    #[test]
    fn index_for_other_ram_is_refused() {
        let bytes = encode(16 << 20, &some());
        assert!(decode(&bytes, 14 << 20, Form::Plain, 0).is_err());
        assert!(decode(&bytes, 16 << 20, Form::Packed, 8191).unwrap_err().contains("8192 bytes"));
        let mut far = some();
        far[1].chunk = 16;
        assert!(decode(&encode(16 << 20, &far), 16 << 20, Form::Plain, 0).unwrap_err().contains("chunk 16"));
        let mut back = some();
        back.reverse();
        assert!(decode(&encode(16 << 20, &back), 16 << 20, Form::Plain, 0).is_err());
        let mut big = some();
        big[0].length = u32::MAX;
        for form in [Form::Plain, Form::Packed] {
            assert!(decode(&encode(16 << 20, &big), 16 << 20, form, 0).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..200) {
            let _ = decode(&bytes, 16 << 20, Form::Packed, 1);
            let whole = encode(16 << 20, &some());
            let cut = cut.min(whole.len() - 1);
            prop_assert!(decode(&whole[..cut], 16 << 20, Form::Plain, 0).is_err());
        }
    }
}
