//! Tests of the serial handshake: both sides over a pipe, and the scanner over bytes cut anywhere.

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::duplex;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// Feeds `bytes` in pieces of `size`; answers the payload of each connection, the part before any hello first.
fn connections(scanner: &mut Scanner, bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    for mut piece in bytes.chunks(size) {
        while !piece.is_empty() {
            let seen = scanner.feed(piece);
            all.last_mut().unwrap().extend_from_slice(&piece[..seen.payload]);
            if seen.hello.is_some() {
                all.push(Vec::new());
            }
            piece = &piece[seen.consumed..];
        }
    }
    all
}

fn greeting(fill: u8) -> Vec<u8> {
    message(HELLO, [fill; 16]).to_vec()
}

#[tokio::test]
async fn host_and_guest_meet_after_what_earlier_connections_left() {
    let (mut host, mut guest) = duplex(64);
    host.write_all(b"half a frame\0MVMHELOshort").await.unwrap();
    guest.write_all(b"half an answer\0MVMECHO\0MVMECHO").await.unwrap();
    let guest = tokio::spawn(async move {
        answer(&mut guest).await.unwrap();
        guest
    });
    hello(&mut host, PATIENCE).await.unwrap();
    let mut guest = guest.await.unwrap();
    host.write_all(b"request").await.unwrap();
    let mut request = [0; 7];
    guest.read_exact(&mut request).await.unwrap();
    assert_eq!(&request, b"request");
}

#[tokio::test]
async fn the_host_reads_nothing_beyond_the_echo() {
    let (mut host, mut guest) = duplex(256);
    let guest = tokio::spawn(async move {
        let nonce = answer(&mut guest).await.unwrap();
        guest.write_all(b"first answer").await.unwrap();
        (nonce, guest)
    });
    hello(&mut host, PATIENCE).await.unwrap();
    let mut answer = [0; 12];
    host.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"first answer");
    let (nonce, _guest) = guest.await.unwrap();
    assert_ne!(nonce, Nonce::default());
}

#[tokio::test]
async fn an_echo_of_another_nonce_is_not_an_answer() {
    let (mut host, mut guest) = duplex(256);
    guest.write_all(&echo([9; 16])).await.unwrap();
    let error = hello(&mut host, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("50ms"), "{error}");
}

#[tokio::test]
async fn a_guest_that_goes_away_is_reported_at_once() {
    let (mut host, guest) = duplex(256);
    drop(guest);
    let error = hello(&mut host, PATIENCE).await.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe), "{error}");
}

#[test]
fn a_hello_is_seen_inside_a_frame_and_ends_it() {
    let bytes =
        [b"garbage".to_vec(), greeting(1), b"torn fra".to_vec(), greeting(2), b"whole".to_vec()].concat();
    for size in 8..bytes.len() {
        let seen = connections(&mut Scanner::default(), &bytes, size);
        assert_eq!(seen.len(), 3, "in pieces of {size}");
        assert_eq!(seen[2], b"whole", "in pieces of {size}");
        // In pieces, the first bytes of a magic may already have been passed on, never the whole of it.
        assert!(seen[1].starts_with(b"torn fra") && seen[1].len() < 16, "in pieces of {size}");
    }
    let at_once = connections(&mut Scanner::default(), &bytes, bytes.len());
    assert_eq!(at_once, [b"garbage".to_vec(), b"torn fra".to_vec(), b"whole".to_vec()]);
}

#[test]
fn user_data_that_holds_a_hello_is_cut_in_its_middle() {
    let data = [b"before".as_slice(), &greeting(3), b"after"].concat();
    let cut = unambiguous_len(&data);
    assert_eq!(cut, 10);
    assert_eq!(unambiguous_len(&data[cut..]), data.len() - cut);
    assert_eq!(unambiguous_len(b"\0MVMHELO"), 4);
    assert_eq!(unambiguous_len(b""), 0);
}

proptest! {
    /// A hello cut at any byte, followed by a whole one: the whole one is always seen, and last.
    #[test]
    fn the_last_hello_is_seen_whatever_came_before(
        before in vec(any::<u8>(), 0..64), cut in 0_usize..24, nonce: [u8; 16], size in 1_usize..80
    ) {
        let bytes = [before, greeting(5)[..cut].to_vec(), message(HELLO, nonce).to_vec(), b"next".to_vec()].concat();
        let mut scanner = Scanner::default();
        let (mut last, mut after) = (None, Vec::new());
        for mut piece in bytes.chunks(size) {
            while !piece.is_empty() {
                let seen = scanner.feed(piece);
                prop_assert!(seen.payload <= seen.consumed && seen.consumed > 0);
                if let Some(hello) = seen.hello {
                    (last, after) = (Some(hello), Vec::new());
                } else {
                    after.extend_from_slice(&piece[..seen.payload]);
                }
                piece = &piece[seen.consumed..];
            }
        }
        prop_assert_eq!(last, Some(nonce));
        prop_assert_eq!(after, b"next".to_vec());
    }

    #[test]
    fn pieces_for_the_guest_never_hold_a_hello(data in vec(prop_oneof![Just(0_u8), Just(b'M'), Just(b'V')], 0..40),
                                               at in 0_usize..40) {
        let mut data = data;
        data.splice(at.min(data.len())..at.min(data.len()), HELLO.into_iter().chain(HELLO));
        let (mut rest, mut pieces) = (data.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(unambiguous_len(rest));
            prop_assert!(!piece.is_empty());
            prop_assert!(!piece.windows(8).any(|window| window == HELLO));
            pieces.extend_from_slice(piece);
            rest = others;
        }
        prop_assert_eq!(pieces, data);
    }
}
