//! Tests of `service` that need no VM.

use super::*;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::{CheckpointOptions, ProcessDetails};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use oci_spec::runtime::LinuxResources;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::timeout;
use ttrpc::context::Context as Ctx;

use crate::config::Source;
use crate::task::{Connected, Create, Deleted, Exec, Exit, Pid, State, Stats, Status, Streams};

const LIMIT: Duration = Duration::from_secs(10);

/// Answers every request and writes it down.
#[derive(Debug, Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    /// What `create` waits for when its id is `slow`.
    go: Notify,
    /// Told when a slow create has begun, and when a container was deleted.
    news: Notify,
    busy: Mutex<bool>,
}

impl Fake {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn find(&self, id: &str) -> Result<()> {
        match id {
            "missing" => Err(Error::new(Kind::NotFound, "No container missing")),
            _ => Ok(()),
        }
    }
}

fn end() -> Exit {
    Exit { status: 137, at: SystemTime::UNIX_EPOCH + Duration::from_secs(5) }
}

#[async_trait]
impl Tasks for Fake {
    async fn create(&self, request: Create) -> Result<u32> {
        if request.id == "slow" {
            self.news.notify_one();
            self.go.notified().await;
        }
        self.note(format!("{request:?}"));
        Ok(7)
    }

    async fn start(&self, process: ProcessRef<'_>) -> Result<u32> {
        self.find(process.container)?;
        if process.container == "panic" {
            panic!("as told");
        }
        Ok(if process.exec.is_empty() { 7 } else { 8 })
    }

    async fn exec(&self, request: Exec) -> Result<()> {
        self.note(format!("exec {} {} {:?}", request.id, request.exec, request.process.args()));
        Ok(())
    }

    async fn state(&self, process: ProcessRef<'_>) -> Result<State> {
        self.find(process.container)?;
        Ok(State {
            id: process.container.into(),
            exec: process.exec.into(),
            bundle: "/b".into(),
            pid: 7,
            status: Status::Stopped,
            streams: Streams { stdout: "/out".into(), terminal: true, ..Streams::default() },
            exit: Some(end()),
        })
    }

    async fn kill(&self, process: ProcessRef<'_>, signal: u32, all: bool) -> Result<()> {
        self.note(format!("kill {} {:?} {signal} {all}", process.container, process.exec));
        Ok(())
    }

    async fn wait(&self, _: ProcessRef<'_>) -> Result<Exit> {
        Ok(end())
    }

    async fn delete(&self, process: ProcessRef<'_>) -> Result<Deleted> {
        self.note(format!("delete {}", process.container));
        self.news.notify_one();
        Ok(Deleted { pid: 7, exit: end() })
    }

    async fn pids(&self, _: &str) -> Result<Vec<Pid>> {
        Ok(vec![Pid { pid: 7, exec: None }, Pid { pid: 8, exec: Some("e1".into()) }])
    }

    async fn pause(&self, _: &str) -> Result<()> {
        let busy = Error::caused(Kind::Internal, "Could not freeze", std::io::Error::other("no such cgroup"));
        Err(busy)
    }

    async fn resume(&self, id: &str) -> Result<()> {
        self.find(id)
    }

    async fn checkpoint(&self, id: &str, path: PathBuf, exit: bool) -> Result<()> {
        self.note(format!("checkpoint {id} {} {exit}", path.display()));
        Ok(())
    }

    async fn update(&self, id: &str, resources: LinuxResources) -> Result<()> {
        self.note(format!("update {id} {:?}", resources.memory().and_then(|memory| memory.limit())));
        Ok(())
    }

    async fn stats(&self, _: &str) -> Result<Stats> {
        Ok(Stats { type_url: "io.containerd.cgroups.v2.Metrics".into(), value: vec![1, 2] })
    }

    async fn resize(&self, _: ProcessRef<'_>, width: u16, height: u16) -> Result<()> {
        self.note(format!("resize {width}x{height}"));
        Ok(())
    }

    async fn close_stdin(&self, process: ProcessRef<'_>) -> Result<()> {
        self.note(format!("close {}", process.container));
        Ok(())
    }

    async fn connect(&self, id: &str) -> Result<Connected> {
        Ok(Connected { shim: 1, task: u32::from(self.find(id).is_ok()) })
    }

    async fn shutdown(&self) -> Result<bool> {
        Ok(!*self.busy.lock().unwrap())
    }
}

struct Served {
    temp: TempDir,
    address: String,
    fake: Arc<Fake>,
    service: Service,
}

impl Served {
    async fn start() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s");
        let address = format!("unix://{}", path.display());
        let fake = Arc::new(Fake::default());
        let listener = UnixListener::bind(&path).unwrap();
        let unlink = move || std::fs::remove_file(&path).unwrap();
        let service = Service::start(listener, fake.clone(), unlink).await.unwrap();
        Served { address, temp, fake, service }
    }

    async fn client(&self) -> TaskClient {
        TaskClient::new(Client::connect(&self.address).await.unwrap())
    }
}

fn status(error: ttrpc::Error) -> (ttrpc::Code, String) {
    let ttrpc::Error::RpcStatus(status) = error else { panic!("no status: {error}") };
    (status.code.enum_value().unwrap(), status.message)
}

fn any(type_url: &str, value: &[u8]) -> MessageField<Any> {
    MessageField::some(Any { type_url: type_url.into(), value: value.into(), ..Default::default() })
}

#[tokio::test]
async fn requests_are_translated_whole() {
    let served = Served::start().await;
    let client = served.client().await;
    let create = api::CreateTaskRequest {
        id: "c1".into(),
        bundle: "/b".into(),
        stdout: "/out".into(),
        checkpoint: "/snapshot".into(),
        rootfs: vec![api::Mount {
            type_: "overlay".into(),
            options: vec!["ro".into()],
            ..Default::default()
        }],
        options: any("containerd.runc.v1.Options", b""),
        ..Default::default()
    };
    assert_eq!(client.create(Ctx::default(), &create).await.unwrap().pid, 7);
    let exec = api::ExecProcessRequest {
        id: "c1".into(),
        exec_id: "e1".into(),
        spec: any("anything", br#"{"cwd":"/","args":["ls"],"user":{"uid":0,"gid":0}}"#),
        ..Default::default()
    };
    client.exec(Ctx::default(), &exec).await.unwrap();
    let start = api::StartRequest { id: "c1".into(), exec_id: "e1".into(), ..Default::default() };
    assert_eq!(client.start(Ctx::default(), &start).await.unwrap().pid, 8);
    let options = CheckpointOptions { exit: true, ..Default::default() }.write_to_bytes().unwrap();
    let checkpoint = api::CheckpointTaskRequest {
        id: "c1".into(),
        path: "/p".into(),
        options: any("type.googleapis.com/containerd.runc.v1.CheckpointOptions", &options),
        ..Default::default()
    };
    client.checkpoint(Ctx::default(), &checkpoint).await.unwrap();
    let update = api::UpdateTaskRequest {
        id: "c1".into(),
        resources: any("x", br#"{"memory":{"limit":4096}}"#),
        ..Default::default()
    };
    client.update(Ctx::default(), &update).await.unwrap();
    let kill = api::KillRequest { id: "c1".into(), signal: 9, all: true, ..Default::default() };
    client.kill(Ctx::default(), &kill).await.unwrap();
    let resize = api::ResizePtyRequest { id: "c1".into(), width: 80, height: 24, ..Default::default() };
    client.resize_pty(Ctx::default(), &resize).await.unwrap();
    for stdin in [false, true] {
        let close = api::CloseIORequest { id: "c1".into(), stdin, ..Default::default() };
        client.close_io(Ctx::default(), &close).await.unwrap();
    }
    let expected = Create {
        id: "c1".into(),
        bundle: "/b".into(),
        rootfs: vec![crate::task::Mount {
            kind: "overlay".into(),
            source: String::new(),
            target: String::new(),
            options: vec!["ro".into()],
        }],
        streams: Streams { stdout: "/out".into(), ..Streams::default() },
        checkpoint: "/snapshot".into(),
        config: Source::Node,
    };
    let calls = [
        &format!("{expected:?}"),
        "exec c1 e1 Some([\"ls\"])",
        "checkpoint c1 /p true",
        "update c1 Some(4096)",
        "kill c1 \"\" 9 true",
        "resize 80x24",
        "close c1",
    ];
    assert_eq!(served.fake.calls(), calls);
}

#[tokio::test]
async fn answers_are_translated_whole() {
    let served = Served::start().await;
    let client = served.client().await;
    let state = api::StateRequest { id: "c1".into(), exec_id: "e1".into(), ..Default::default() };
    let state = client.state(Ctx::default(), &state).await.unwrap();
    assert_eq!((state.id.as_str(), state.exec_id.as_str(), state.pid), ("c1", "e1", 7));
    assert_eq!((state.status.enum_value().unwrap(), state.exit_status), (api::Status::STOPPED, 137));
    assert_eq!((state.exited_at.seconds, state.terminal, state.stdout.as_str()), (5, true, "/out"));
    let pids = client.pids(Ctx::default(), &api::PidsRequest::default()).await.unwrap().processes;
    assert!(pids[0].pid == 7 && pids[0].info.is_none());
    assert_eq!((pids[1].pid, pids[1].info.type_url.as_str()), (8, "containerd.runc.v1.ProcessDetails"));
    assert_eq!(ProcessDetails::parse_from_bytes(&pids[1].info.value).unwrap().exec_id, "e1");
    let deleted = client.delete(Ctx::default(), &api::DeleteRequest::default()).await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status, deleted.exited_at.seconds), (7, 137, 5));
    let exit = client.wait(Ctx::default(), &api::WaitRequest::default()).await.unwrap();
    assert_eq!((exit.exit_status, exit.exited_at.seconds), (137, 5));
    let stats = client.stats(Ctx::default(), &api::StatsRequest::default()).await.unwrap().stats;
    assert_eq!(
        (stats.type_url.as_str(), stats.value.as_slice()),
        ("io.containerd.cgroups.v2.Metrics", &[1, 2][..])
    );
    let connect = |id: &str| api::ConnectRequest { id: id.into(), ..Default::default() };
    assert_eq!(client.connect(Ctx::default(), &connect("c1")).await.unwrap().task_pid, 1);
    assert_eq!(client.connect(Ctx::default(), &connect("missing")).await.unwrap().task_pid, 0);
}

#[tokio::test]
async fn errors_have_their_code_and_their_whole_chain() {
    let served = Served::start().await;
    let client = served.client().await;
    let missing = api::StateRequest { id: "missing".into(), ..Default::default() };
    let error = client.state(Ctx::default(), &missing).await.unwrap_err();
    assert_eq!(status(error), (ttrpc::Code::NOT_FOUND, "No container missing".into()));
    let error = client.pause(Ctx::default(), &api::PauseRequest::default()).await.unwrap_err();
    assert_eq!(status(error), (ttrpc::Code::INTERNAL, "Could not freeze: no such cgroup".into()));
    let start = api::StartRequest { id: "panic".into(), ..Default::default() };
    assert_eq!(status(client.start(Ctx::default(), &start).await.unwrap_err()).0, ttrpc::Code::INTERNAL);

    let error = client.create(Ctx::default(), &api::CreateTaskRequest::default()).await.unwrap_err();
    assert_eq!(status(error), (ttrpc::Code::INVALID_ARGUMENT, "The request has no id".into()));
    let exec =
        |spec| api::ExecProcessRequest { id: "c".into(), exec_id: "e".into(), spec, ..Default::default() };
    for spec in [MessageField::none(), any("x", b"{"), any("x", b"[]")] {
        let error = client.exec(Ctx::default(), &exec(spec)).await.unwrap_err();
        let (code, text) = status(error);
        assert!(code == ttrpc::Code::INVALID_ARGUMENT && text.contains("spec"), "{code:?} {text}");
    }
    let resize = api::ResizePtyRequest { width: 70_000, ..Default::default() };
    assert_eq!(
        status(client.resize_pty(Ctx::default(), &resize).await.unwrap_err()).0,
        ttrpc::Code::INVALID_ARGUMENT
    );
    assert!(served.fake.calls().is_empty());
}

#[tokio::test]
async fn version_2_is_the_same_service() {
    let served = Served::start().await;
    let client = Client::connect(&served.address).await.unwrap();
    let request = ttrpc::proto::Request {
        service: VERSION_2.into(),
        method: "Start".into(),
        payload: api::StartRequest { id: "c1".into(), ..Default::default() }.write_to_bytes().unwrap(),
        ..Default::default()
    };
    let answer = client.request(request).await.unwrap();
    assert_eq!(api::StartResponse::parse_from_bytes(&answer.payload).unwrap().pid, 7);
}

#[tokio::test]
async fn a_create_that_nobody_waits_for_is_undone() {
    let served = Served::start().await;
    let client = served.client().await;
    let create = api::CreateTaskRequest { id: "slow".into(), bundle: "/b".into(), ..Default::default() };
    let impatient = ttrpc::context::with_duration(Duration::from_millis(200));
    assert!(client.create(impatient, &create).await.is_err());
    timeout(LIMIT, served.fake.news.notified()).await.unwrap();
    // The server's own deadline for the request is the same, so its handler may still be about to give up.
    tokio::time::sleep(Duration::from_millis(300)).await;
    served.fake.go.notify_one();
    timeout(LIMIT, served.fake.news.notified()).await.unwrap();
    let calls = served.fake.calls();
    assert_eq!(calls[1..], ["kill slow \"\" 9 true", "delete slow"]);
}

#[tokio::test]
async fn a_broken_connection_does_not_stop_the_work() {
    let served = Served::start().await;
    let client = served.client().await;
    let create = api::CreateTaskRequest { id: "slow".into(), bundle: "/b".into(), ..Default::default() };
    let call = tokio::spawn(async move { client.create(Ctx::default(), &create).await });
    timeout(LIMIT, served.fake.news.notified()).await.unwrap();
    call.abort();
    served.fake.go.notify_one();
    let done = async {
        while served.fake.calls().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, done).await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_the_service_only_when_nothing_is_left() {
    let served = Served::start().await;
    let client = served.client().await;
    *served.fake.busy.lock().unwrap() = true;
    client.shutdown(Ctx::default(), &api::ShutdownRequest::default()).await.unwrap();
    assert!(timeout(Duration::from_millis(50), served.service.ended()).await.is_err());
    assert!(served.temp.path().join("s").exists());
    *served.fake.busy.lock().unwrap() = false;
    client.shutdown(Ctx::default(), &api::ShutdownRequest::default()).await.unwrap();
    assert!(!served.temp.path().join("s").exists(), "another shim may come as soon as this one has answered");
    timeout(LIMIT, served.service.ended()).await.unwrap();
    timeout(LIMIT, served.service.stop()).await.unwrap();
}
