//! What Cloud Hypervisor tells of itself on a pipe of its own: JSON texts with an empty line after each. A guest that
//! resets itself would be booted again, as a machine that nobody knows; so that ends the VMM. Called by this VMM only.

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Longest event that is read; the longest has some 200 bytes.
const EVENT: usize = 64 << 10;

/// One event.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Event {
    /// `vmm`, `vm`, `virtio-device` or `guest`.
    source: String,
    /// What has happened to it.
    event: String,
}

impl Event {
    /// Whether the guest is not what it was any more.
    fn is_end(&self) -> bool {
        matches!((&*self.source, &*self.event), ("vm", "rebooting" | "shutdown") | ("guest", "panic"))
    }
}

/// Reads events until one means that the guest has ended. None: the VMM has hung up.
pub(super) async fn end(pipe: impl AsyncRead + Unpin) -> Option<String> {
    let mut pipe = BufReader::new(pipe);
    let mut text = Vec::new();
    loop {
        let room = u64::try_from(EVENT - text.len()).unwrap_or_default();
        match (&mut pipe).take(room).read_until(b'\n', &mut text).await {
            Ok(1..) => {}
            _ => return None,
        }
        if !text.ends_with(b"\n\n") {
            if text.len() >= EVENT {
                log::warn!("Cloud Hypervisor told an event without end");
                return None;
            }
            continue;
        }
        match serde_json::from_slice::<Event>(&text) {
            Ok(event) => {
                log::debug!("Cloud Hypervisor event {}: {}", event.source, event.event);
                if event.is_end() {
                    return Some(format!("{} {}", event.source, event.event));
                }
            }
            Err(error) => log::warn!("Cloud Hypervisor told what is no event: {error}"),
        }
        text.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(source: &str, event: &str) -> String {
        let time = "{\n    \"secs\": 1,\n    \"nanos\": 2\n  }";
        format!(
            "{{\n  \"timestamp\": {time},\n  \"source\": \"{source}\",\n  \"event\": \"{event}\",\n  \
             \"properties\": null\n}}\n\n"
        )
    }

    #[tokio::test]
    async fn a_guest_that_resets_is_at_its_end() {
        let text = [event("vmm", "starting"), event("vm", "booted"), event("vm", "rebooting")].concat();
        assert_eq!(end(text.as_bytes()).await.as_deref(), Some("vm rebooting"));
        assert_eq!(end(event("guest", "panic").as_bytes()).await.as_deref(), Some("guest panic"));
    }

    #[tokio::test]
    async fn events_of_newer_versions_and_nonsense_are_passed_over() {
        let text = format!("no event\n\n{}{}", event("moon", "rebooting"), event("vm", "shutdown"));
        assert_eq!(end(text.as_bytes()).await.as_deref(), Some("vm shutdown"));
    }

    #[tokio::test]
    async fn a_vmm_that_hangs_up_or_never_ends_a_line_has_told_nothing() {
        assert_eq!(end(&b"{\n  \"source\""[..]).await, None);
        assert_eq!(end(&vec![b'x'; 2 * EVENT][..]).await, None);
    }
}
