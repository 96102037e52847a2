//! The byte stream between shim and agent.

use agent_proto::serial::{HELLO, Nonce, Scanner};

/// What the guest's port delivers: however it is cut into pieces, the same connections begin at the same bytes.
///
/// # Panics
/// When that is not so.
#[must_use]
pub fn serial(bytes: &[u8]) -> bool {
    let step = bytes.first().map_or(1, |byte| usize::from(*byte) % 7 + 1);
    let found = hellos(bytes, bytes.len().max(1));
    assert_eq!(found, hellos(bytes, step), "pieces of {step}");
    !found.is_empty()
}

/// Each hello, and where it ends.
fn hellos(bytes: &[u8], step: usize) -> Vec<(usize, Nonce)> {
    let mut scanner = Scanner::default();
    let (mut found, mut at) = (Vec::new(), 0);
    for mut piece in bytes.chunks(step) {
        while !piece.is_empty() {
            let seen = scanner.feed(piece);
            assert!(seen.consumed > 0 && seen.consumed <= piece.len() && seen.payload <= seen.consumed);
            at += seen.consumed;
            piece = &piece[seen.consumed..];
            found.extend(seen.hello.map(|nonce| (at, nonce)));
        }
    }
    found
}

pub(crate) fn serial_seeds() -> Vec<Vec<u8>> {
    let hello = [&HELLO[..], &[7; 16]].concat();
    let cut = [&hello[..15], &hello[..], b"payload", &hello[..]].concat();
    let nested = [&HELLO[..], &HELLO[..], &HELLO[..], &[1; 16]].concat();
    vec![hello, cut, nested]
}
