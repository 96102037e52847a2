//! What the guest says about a failure, made safe to show: it is hostile text. Called by the agent's client.

use std::fmt::{self, Write as _};

use crate::error::{Error, Kind};

/// Most of a guest's error text that is kept, in bytes.
const MOST: usize = 4096;

/// One failure in the guest's own words.
#[derive(Debug)]
struct Said(String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest says: {}", self.0)
    }
}

impl std::error::Error for Said {}

/// The error of a call that tried to do `what`.
pub(super) fn of(what: &str, error: ttrpc::Error) -> Error {
    match error {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::DEADLINE_EXCEEDED => {
            Error::new(Kind::DeadlineExceeded, format!("The guest agent was too slow to {what}"))
        }
        ttrpc::Error::RpcStatus(status) => {
            let said = Said(bounded(status.message(), MOST));
            Error::caused(kind(status.code()), format!("The guest agent could not {what}"), said)
        }
        ttrpc::Error::Socket(_)
        | ttrpc::Error::Nix(_)
        | ttrpc::Error::LocalClosed
        | ttrpc::Error::RemoteClosed
        | ttrpc::Error::Eof => gone(what),
        ttrpc::Error::Others(text) => {
            let text = bounded(&text, MOST);
            Error::caused(Kind::Unavailable, format!("Could not ask the guest agent to {what}"), text)
        }
    }
}

/// The error of a call whose connection has ended.
pub(super) fn gone(what: &str) -> Error {
    Error::new(Kind::Unavailable, format!("The guest agent hung up before it could {what}"))
}

/// The error of an answer that no honest agent gives.
pub(super) fn nonsense(what: &str, answer: &str) -> Error {
    Error::new(
        Kind::Internal,
        format!("The guest agent broke its protocol when asked to {what}: {}", bounded(answer, MOST)),
    )
}

fn kind(code: ttrpc::Code) -> Kind {
    match code {
        ttrpc::Code::NOT_FOUND => Kind::NotFound,
        ttrpc::Code::ALREADY_EXISTS => Kind::AlreadyExists,
        ttrpc::Code::INVALID_ARGUMENT | ttrpc::Code::OUT_OF_RANGE => Kind::InvalidArgument,
        ttrpc::Code::FAILED_PRECONDITION => Kind::FailedPrecondition,
        ttrpc::Code::DEADLINE_EXCEEDED => Kind::DeadlineExceeded,
        ttrpc::Code::UNAVAILABLE => Kind::Unavailable,
        ttrpc::Code::RESOURCE_EXHAUSTED => Kind::ResourceExhausted,
        ttrpc::Code::UNIMPLEMENTED => Kind::Unimplemented,
        _ => Kind::Internal,
    }
}

/// At most `most` bytes of `text`, with everything escaped that could move a terminal's cursor, start a line of
/// its own in a log, or reorder what a person reads.
pub(super) fn bounded(text: &str, most: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        let start = safe.len();
        if c.is_control() || is_invisible(c) {
            // Writing to a String can't fail.
            let _ = write!(safe, "{}", c.escape_default());
        } else {
            safe.push(c);
        }
        if safe.len() + '…'.len_utf8() > most {
            safe.truncate(start);
            safe.push('…');
            break;
        }
    }
    safe
}

/// Line separators, zero-width and bidirectional format characters, which `char::is_control` leaves out.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_of_the_guest_can_not_forge_log_lines() {
        let text = bounded("no such file\nERROR fake \u{1b}[2J\u{202e}txet\u{2028}", 200);
        assert_eq!(text, r"no such file\nERROR fake \u{1b}[2J\u{202e}txet\u{2028}");
    }

    #[test]
    fn codes_of_the_guest_become_kinds_and_its_text_the_cause() {
        let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no exec \u{7}");
        let error = of("wait for exec \"a\"", ttrpc::Error::RpcStatus(status));
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(
            error.chain(),
            r#"The guest agent could not wait for exec "a": the guest says: no exec \u{7}"#
        );
        assert_eq!(of("x", ttrpc::Error::RemoteClosed).kind(), Kind::Unavailable);
    }

    proptest! {
        #[test]
        fn bounded_text_is_short_and_printable(text in "\\PC*|(?s).*", most in 16usize..300) {
            let safe = bounded(&text, most);
            prop_assert!(safe.len() <= most);
            prop_assert!(!safe.chars().any(|c| c.is_control() || is_invisible(c)));
        }
    }
}
