//! The guest's side of the handshake: sees each hello in everything that a port delivers.

use super::find::Finder;
use super::{HELLO, Nonce};

/// Follows the bytes of a port for the whole of its life, across all its connections.
#[derive(Debug)]
pub struct Scanner {
    magic: Finder,
    /// What has come of the nonce since the last magic, until it is complete.
    nonce: Option<Vec<u8>>,
}

/// What [`Scanner::feed`] saw in the bytes it was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// So many of the bytes, from the first, belong to the connection that was open before.
    pub payload: usize,
    /// So many were looked at: all, or up to the end of a hello. Feed the others next.
    pub consumed: usize,
    /// A hello ended there: echo it, a new connection begins with the next byte.
    pub hello: Option<Nonce>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { magic: Finder::new(&HELLO), nonce: None }
    }
}

impl Scanner {
    /// Takes the next bytes of the port.
    pub fn feed(&mut self, bytes: &[u8]) -> Seen {
        // Once a hello has begun, nothing more of the connection before it can come.
        let mut payload = self.nonce.is_some().then_some(0);
        for (index, &byte) in bytes.iter().enumerate() {
            let consumed = index + 1;
            // Looked for inside a nonce too: a hello that was cut short is followed by a whole one.
            if self.magic.step(byte) {
                payload.get_or_insert(consumed.saturating_sub(HELLO.len()));
                self.nonce = Some(Vec::with_capacity(size_of::<Nonce>()));
            } else if let Some(nonce) = self.collect(byte) {
                return Seen { payload: payload.unwrap_or(0), consumed, hello: Some(nonce) };
            }
        }
        Seen { payload: payload.unwrap_or(bytes.len()), consumed: bytes.len(), hello: None }
    }

    fn collect(&mut self, byte: u8) -> Option<Nonce> {
        let collected = self.nonce.as_mut()?;
        collected.push(byte);
        let nonce = Nonce::try_from(collected.as_slice()).ok()?;
        self.nonce = None;
        Some(nonce)
    }
}
