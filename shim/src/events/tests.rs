//! Tests of `events` that need no VM.

use super::*;

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use containerd_shim_protos::events::task::{TaskDelete, TaskExit};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use ttrpc::r#async::{Server, TtrpcContext};

const LIMIT: Duration = Duration::from_secs(60);

fn started(number: u32) -> Event {
    Event::Started { id: number.to_string(), pid: number }
}

fn exit(status: u32) -> Exit {
    Exit { status, at: SystemTime::UNIX_EPOCH + Duration::new(1_800_000_000, 5) }
}

/// Answers each event as told, and well when nothing is told any more.
#[derive(Debug, Clone, Default)]
struct Scripted {
    answers: Arc<Mutex<VecDeque<bool>>>,
    taken: Recorder,
    refuse: bool,
}

#[async_trait]
impl Sink for Scripted {
    async fn forward(&self, envelope: &Envelope) -> Result<(), Rejection> {
        if self.answers.lock().unwrap().pop_front().unwrap_or(true) {
            return self.taken.forward(envelope).await;
        }
        let error = Error::new(Kind::Unavailable, "away");
        Err(if self.refuse { Rejection::Refused(error) } else { Rejection::Unreachable(error) })
    }
}

impl Scripted {
    fn answering(answers: impl IntoIterator<Item = bool>) -> Self {
        Scripted { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Scripted::default() }
    }

    /// The topics and payload bytes that came through, after sending `count` events.
    async fn deliver(self, count: u32) -> Vec<u32> {
        let sender = Sender::start("ns", self.clone());
        (0..count).for_each(|number| sender.send(started(number)));
        sender.flush(LIMIT).await.unwrap();
        let pid = |envelope: &Envelope| {
            let start =
                containerd_shim_protos::events::task::TaskStart::parse_from_bytes(&envelope.event.value);
            start.unwrap().pid
        };
        self.taken.envelopes().iter().map(pid).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_event_holds_back_the_others_until_it_is_through() {
    let answers = [true, false, false, true, false];
    assert_eq!(Scripted::answering(answers).deliver(5).await, [0, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn an_event_is_given_up_after_its_last_retry_and_the_rest_goes_on() {
    let first_try_and_retries = vec![false; 1 + RETRIES.len()];
    assert_eq!(Scripted::answering(first_try_and_retries).deliver(3).await, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_is_not_tried_again() {
    let sink = Scripted { refuse: true, ..Scripted::answering([false]) };
    assert_eq!(sink.deliver(2).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn flush_ends_at_its_deadline() {
    let sender = Sender::start("ns", Scripted::answering(vec![false; 100]));
    sender.send(started(1));
    let error = sender.flush(Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
}

#[tokio::test]
async fn envelopes_are_what_containerd_expects() {
    let (sender, recorder) = recorder();
    let id = || "c1".to_owned();
    let exec = || "e1".to_owned();
    let (bundle, checkpoint) = ("/b".to_owned(), String::new());
    sender.send(Event::Created {
        id: id(),
        bundle,
        rootfs: vec![],
        streams: Streams::default(),
        checkpoint,
        pid: 7,
    });
    sender.send(Event::Started { id: id(), pid: 7 });
    sender.send(Event::ExecAdded { id: id(), exec: exec() });
    sender.send(Event::ExecStarted { id: id(), exec: exec(), pid: 8 });
    sender.send(Event::Exited { id: id(), exec: exec(), pid: 8, exit: exit(0) });
    sender.send(Event::Paused { id: id() });
    sender.send(Event::Checkpointed { id: id(), checkpoint: "/c".into() });
    sender.send(Event::Resumed { id: id() });
    sender.send(Event::OutOfMemory { id: id() });
    sender.send(Event::Exited { id: id(), exec: String::new(), pid: 7, exit: exit(137) });
    sender.send(Event::Deleted { id: id(), pid: 7, exit: exit(137) });
    sender.flush(LIMIT).await.unwrap();

    let topics = "create start exec-added exec-started exit paused checkpointed resumed oom exit delete";
    assert_eq!(recorder.topics().join(" "), topics);
    let types: Vec<_> = recorder.envelopes().iter().map(|envelope| envelope.event.type_url.clone()).collect();
    let expected = "TaskCreate TaskStart TaskExecAdded TaskExecStarted TaskExit TaskPaused TaskCheckpointed \
                    TaskResumed TaskOOM TaskExit TaskDelete";
    let expected: Vec<_> = expected.split(' ').map(|name| format!("containerd.events.{name}")).collect();
    assert_eq!(types, expected);

    let envelopes = recorder.envelopes();
    let exits: Vec<_> = [4, 9]
        .map(|index: usize| TaskExit::parse_from_bytes(&envelopes[index].event.value).unwrap())
        .into_iter()
        .map(|exit| (exit.id, exit.exit_status, exit.exited_at.seconds, exit.exited_at.nanos))
        .collect();
    assert_eq!(exits, [("e1".into(), 0, 1_800_000_000, 5), ("c1".into(), 137, 1_800_000_000, 5)]);
    let delete = TaskDelete::parse_from_bytes(&envelopes[10].event.value).unwrap();
    assert_eq!((delete.container_id.as_str(), delete.pid, delete.id.as_str()), ("c1", 7, ""));
    assert!(envelopes.iter().all(|envelope| envelope.namespace == "test" && envelope.timestamp.seconds > 0));
}

struct Daemon(Recorder);

#[async_trait]
impl Events for Daemon {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.forward(&request.envelope).await.unwrap();
        Ok(Empty::new())
    }
}

async fn serve(path: &Path, recorder: &Recorder) -> Server {
    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    let service = Arc::new(Daemon(recorder.clone()));
    let mut server = Server::new().add_listener(listener.into()).register_service(create_events(service));
    server.start().await.unwrap();
    server
}

#[tokio::test]
async fn events_reach_containerd_again_after_its_restart() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("containerd.sock.ttrpc");
    let recorder = Recorder::default();
    let sender = Sender::start("ns", containerd(path.to_str().unwrap()));
    let mut server = serve(&path, &recorder).await;
    sender.send(started(1));
    sender.flush(LIMIT).await.unwrap();
    assert_eq!(recorder.topics(), ["start"]);

    server.shutdown().await.unwrap();
    drop(server);
    std::fs::remove_file(&path).unwrap();
    sender.send(started(2));
    sender.send(Event::OutOfMemory { id: "1".into() });
    let _server = serve(&path, &recorder).await;
    sender.flush(LIMIT).await.unwrap();
    assert_eq!(recorder.topics(), ["start", "start", "oom"]);
}
