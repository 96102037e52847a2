//! BLAKE3 checksums of snapshot files, and why it is that one: see `docs/decisions/0003-snapshot-format.md`.
//! Called by the rest of `snapshot`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::str::FromStr;

use serde::{Serialize, Serializer};

const PREFIX: &str = "blake3:";

/// A BLAKE3 hash, written as `blake3:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum([u8; 32]);

impl Checksum {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// As it stands in a binary file.
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For a binary file.
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Hashes all of `from`, and gives every piece to `piece` after hashing it.
pub(super) fn stream(
    mut from: &File,
    mut piece: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Checksum> {
    from.rewind()?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(Checksum(*hasher.finalize().as_bytes())),
            Ok(length) => {
                hasher.update(&buffer[..length]);
                piece(&buffer[..length])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Checksum {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let hex = text.strip_prefix(PREFIX).ok_or(())?.as_bytes();
        let mut bytes = [0; 32];
        if hex.len() != 64 || !hex.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(());
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| ())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_and_nothing_else_is_taken() {
        let sum = Checksum::of(b"x");
        assert_eq!(sum.to_string().parse(), Ok(sum));
        let text = sum.to_string();
        for bad in ["", "blake3:", "sha256:00", &text.to_uppercase(), &text[..70], &format!("{text}0")] {
            assert_eq!(bad.parse::<Checksum>(), Err(()), "{bad}");
        }
    }
}
