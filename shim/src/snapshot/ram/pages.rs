//! Which pages of a chunk are there. Called by the rest of `ram`.

use std::ops::Range;

use super::{CHUNK, PAGE};

const WORDS: usize = CHUNK / PAGE / 64;
/// Bytes of a set of pages in `ram.index`.
pub(super) const BYTES: usize = WORDS * 8;

/// A set of pages of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pages([u64; WORDS]);

impl Pages {
    pub(super) fn from_bytes(bytes: [u8; BYTES]) -> Self {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self(words)
    }

    pub(super) fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *bytes = word.to_le_bytes();
        }
        bytes
    }

    pub(super) fn insert(&mut self, page: usize) {
        self.0[page / 64] |= 1 << (page % 64);
    }

    fn has(self, page: usize) -> bool {
        self.0[page / 64] >> (page % 64) & 1 == 1
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Bytes of the pages in it.
    pub(super) fn bytes(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum::<usize>() * PAGE
    }

    /// The byte ranges in the chunk that it covers; neighbours are one range.
    pub(super) fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = (page..CHUNK / PAGE).find(|page| self.has(*page))?;
            let end = (start..CHUNK / PAGE).find(|page| !self.has(*page)).unwrap_or(CHUNK / PAGE);
            page = end;
            Some(start * PAGE..end * PAGE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_exactly_the_pages(set in proptest::collection::btree_set(0..CHUNK / PAGE, 0..256)) {
            let mut pages = Pages::default();
            set.iter().for_each(|page| pages.insert(*page));
            let covered: Vec<_> = pages.runs().flat_map(|run| run.step_by(PAGE).map(|at| at / PAGE)).collect();
            prop_assert_eq!(covered, set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(pages.bytes(), set.len() * PAGE);
            prop_assert_eq!(pages.is_empty(), set.is_empty());
            prop_assert_eq!(Pages::from_bytes(pages.to_bytes()), pages);
        }
    }
}
