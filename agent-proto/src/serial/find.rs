//! Finds one pattern in a stream of bytes that arrives in pieces; used by the handshake's two sides.

/// Knuth-Morris-Pratt: no byte is looked at twice, none has to be kept.
#[derive(Debug, Clone)]
pub(super) struct Finder {
    pattern: Vec<u8>,
    /// `fallback[n]`: when n bytes match and the next does not, so many still do.
    fallback: Vec<usize>,
    matched: usize,
}

impl Finder {
    pub(super) fn new(pattern: &[u8]) -> Self {
        let mut fallback = vec![0; pattern.len() + 1];
        let mut matched = 0;
        for end in 1..pattern.len() {
            while matched > 0 && pattern[matched] != pattern[end] {
                matched = fallback[matched];
            }
            if pattern[matched] == pattern[end] {
                matched += 1;
            }
            fallback[end + 1] = matched;
        }
        Self { pattern: pattern.to_vec(), fallback, matched: 0 }
    }

    /// How many bytes at least must still come until the pattern is found; 0 once it is.
    pub(super) fn missing(&self) -> usize {
        self.pattern.len() - self.matched
    }

    /// Takes the next byte: whether it completes a match.
    pub(super) fn step(&mut self, byte: u8) -> bool {
        if self.missing() == 0 {
            self.matched = self.fallback[self.matched];
        }
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        if self.pattern[self.matched] == byte {
            self.matched += 1;
        }
        self.missing() == 0
    }
}
