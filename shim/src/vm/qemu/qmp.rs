//! QEMU's monitor protocol (QMP): a line of JSON for each command, answer and event. Called by this VMM only.
//!
//! Written by hand, because the `qapi` crate has a closed list of everything a QEMU of one version may say, and
//! fails at the first word of a newer one. Here unknown fields and events are passed over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};

use crate::error::{Context, Error, Kind, Result};

/// Longest line that is read; QEMU's longest answer to what we ask has a few KiB.
const LINE: u64 = 1 << 20;

/// A connection to the monitor of one QEMU. Commands may be in flight at the same time.
#[derive(Debug)]
pub(super) struct Qmp {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Arc<Waiting>,
    last_id: AtomicU64,
    migration: watch::Receiver<Migration>,
}

/// The latest status that a `MIGRATION` event has told, as QEMU spells it, and how many such events there were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Migration {
    pub(super) status: String,
    pub(super) count: u64,
}

/// Who waits for which answer; none once the monitor is gone.
type Waiting = Mutex<Option<Waiters>>;
type Waiters = HashMap<u64, oneshot::Sender<Result<Value, Failure>>>;

/// A line from QEMU.
#[derive(Deserialize)]
struct Message {
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
    data: Option<Value>,
}

/// QEMU's refusal of a command.
#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

impl Qmp {
    /// Takes the greeting and enters command mode.
    pub(super) async fn open(stream: UnixStream, deadline: Duration) -> Result<Self> {
        let (reader, writer) = stream.into_split();
        let waiting: Arc<Waiting> = Arc::new(Mutex::new(Some(HashMap::new())));
        let (sender, migration) = watch::channel(Migration::default());
        tokio::spawn(listen(reader, Arc::clone(&waiting), sender));
        let qmp =
            Self { writer: tokio::sync::Mutex::new(writer), waiting, last_id: AtomicU64::new(0), migration };
        // QEMU reads commands only after it has sent its greeting, which has nothing that we need.
        qmp.execute("qmp_capabilities", Value::Null, deadline).await?;
        Ok(qmp)
    }

    /// Runs `command` and answers what QEMU returns.
    ///
    /// # Errors
    /// `Internal` with QEMU's words when it refuses, `DeadlineExceeded`, or `Unavailable` when it is gone.
    pub(super) async fn execute(&self, command: &str, arguments: Value, deadline: Duration) -> Result<Value> {
        let exchange = self.exchange(command, arguments);
        let answer = tokio::time::timeout(deadline, exchange).await.map_err(|_| {
            let text = format!("QEMU did not answer {command} within {deadline:?}");
            Error::new(Kind::DeadlineExceeded, text)
        })??;
        answer.map_err(|failure| {
            Error::new(Kind::Internal, format!("QEMU refused {command}: {}", failure.desc))
        })
    }

    /// What the `MIGRATION` events tell.
    pub(super) fn migration(&self) -> watch::Receiver<Migration> {
        self.migration.clone()
    }

    async fn exchange(&self, command: &str, arguments: Value) -> Result<Result<Value, Failure>> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let (sender, receiver) = oneshot::channel();
        let gone = || Error::new(Kind::Unavailable, format!("QEMU has closed its monitor before {command}"));
        locked(&self.waiting).as_mut().ok_or_else(gone)?.insert(id, sender);
        let _forget = Forget { waiting: &self.waiting, id };
        let line = format!("{request}\n");
        let mut writer = self.writer.lock().await;
        writer
            .write_all(line.as_bytes())
            .await
            .kind(Kind::Unavailable, || format!("Could not send {command} to QEMU"))?;
        drop(writer);
        receiver.await.map_err(|_| gone())
    }
}

/// Takes a request that nobody waits for any more off the list.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = locked(self.waiting).as_mut() {
            waiting.remove(&self.id);
        }
    }
}

fn locked(waiting: &Waiting) -> MutexGuard<'_, Option<Waiters>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads all that QEMU says, whether somebody waits for it or not, until it stops.
async fn listen(reader: OwnedReadHalf, waiting: Arc<Waiting>, migration: watch::Sender<Migration>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE).read_until(b'\n', &mut line).await {
            Ok(1..) if line.ends_with(b"\n") => {}
            _ => break,
        }
        let Ok(message) = serde_json::from_slice::<Message>(&line) else {
            log::warn!("QEMU's monitor said what is no QMP: {}", String::from_utf8_lossy(&line));
            break;
        };
        if let Some(event) = &message.event {
            log::debug!("QEMU event {event}");
            if event == "MIGRATION" {
                let status = message.data.as_ref().and_then(|data| data["status"].as_str());
                migration.send_modify(|migration| {
                    status.unwrap_or_default().clone_into(&mut migration.status);
                    migration.count += 1;
                });
            }
            continue;
        }
        let answer = match (message.answer, message.error) {
            (Some(answer), _) => Ok(answer),
            (None, Some(failure)) => Err(failure),
            (None, None) => continue,
        };
        let waiter = message.id.and_then(|id| locked(&waiting).as_mut()?.remove(&id));
        if let Some(waiter) = waiter {
            // Nobody may wait any more, which is as well.
            let _ = waiter.send(answer);
        }
    }
    // Wakes all who wait, and turns away who comes later.
    locked(&waiting).take();
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 99}}, "capabilities": ["news"]}}"#;

    /// A monitor that expects commands in order and says something after each; `ID` stands for the command's id.
    async fn scripted(script: &'static [(&'static str, &'static [&'static str])]) -> Result<Qmp> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            writer.write_all(format!("{GREETING}\n").as_bytes()).await.unwrap();
            for (command, replies) in script {
                let Some(line) = lines.next_line().await.unwrap() else { return };
                let request: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(request["execute"], *command);
                for reply in *replies {
                    let reply = reply.replace("ID", &request["id"].to_string());
                    writer.write_all(format!("{reply}\r\n").as_bytes()).await.unwrap();
                }
            }
            // Stays until the other side has gone.
            lines.next_line().await.unwrap();
        });
        Qmp::open(ours, SOON).await
    }

    const READY: (&str, &[&str]) = ("qmp_capabilities", &[r#"{"return": {}, "id": ID}"#]);

    #[tokio::test]
    async fn answers_find_their_command_between_events_and_fields_of_newer_versions() {
        let qmp = scripted(&[
            READY,
            (
                "query-status",
                &[
                    r#"{"event": "BRAND_NEW", "data": {"x": [1]}, "timestamp": {"seconds": 1}}"#,
                    r#"{"return": {"stale": true}, "id": 4711}"#,
                    r#"{"return": {"status": "running", "novelty": null}, "id": ID}"#,
                ],
            ),
        ])
        .await
        .unwrap();
        let answer = qmp.execute("query-status", Value::Null, SOON).await.unwrap();
        assert_eq!(answer["status"], "running");
    }

    #[tokio::test]
    async fn a_refusal_carries_qemus_words() {
        let refusal = r#"{"error": {"class": "GenericError", "desc": "State blocked by device"}, "id": ID}"#;
        let refusal: &'static [&'static str] = Box::leak(Box::new([refusal]));
        let script = Box::leak(Box::new([READY, ("migrate", refusal)]));
        let qmp = scripted(script).await.unwrap();
        let error = qmp.execute("migrate", json!({"uri": "x"}), SOON).await.unwrap_err();
        assert_eq!(error.chain(), "QEMU refused migrate: State blocked by device");
    }

    #[tokio::test]
    async fn migration_events_are_kept_for_whoever_asks_later() {
        let qmp = scripted(&[
            READY,
            (
                "migrate",
                &[
                    r#"{"event": "MIGRATION", "data": {"status": "setup"}}"#,
                    r#"{"return": {}, "id": ID}"#,
                    r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
                ],
            ),
        ])
        .await
        .unwrap();
        qmp.execute("migrate", Value::Null, SOON).await.unwrap();
        let mut migration = qmp.migration();
        let last = migration.wait_for(|migration| migration.status == "completed");
        let last = tokio::time::timeout(SOON, last).await.unwrap().unwrap().clone();
        assert_eq!(last.count, 2);
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline_and_the_next_command_still_works() {
        let script = &[READY, ("stop", &[] as &[&str]), ("cont", &[r#"{"return": {}, "id": ID}"#])];
        let qmp = scripted(script).await.unwrap();
        let error = qmp.execute("stop", Value::Null, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert_eq!(error.chain(), "QEMU did not answer stop within 20ms");
        qmp.execute("cont", Value::Null, SOON).await.unwrap();
        assert_eq!(locked(&qmp.waiting).as_ref().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn the_end_of_qemu_wakes_who_waits_and_turns_away_who_comes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let open = tokio::spawn(Qmp::open(ours, SOON));
        drop(theirs);
        assert_eq!(open.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn an_endless_line_is_not_swallowed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let open = tokio::spawn(Qmp::open(ours, SOON));
        let block = vec![b'x'; 64 << 10];
        // The reader gives up at a megabyte, and with it the socket.
        let mut sent = 0;
        while theirs.write_all(&block).await.is_ok() && sent < (8 << 20) {
            sent += block.len();
        }
        assert_eq!(open.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    }
}
