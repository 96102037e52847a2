//! Connections in a network namespace of the test, carried to a guest that says everything back. Needs root.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream as Client};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use agent_proto::{agent, agent_ttrpc, health, health_ttrpc, microvm, microvm_ttrpc};
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use ttrpc::r#async::TtrpcContext;

use super::super::create_netns;
use super::*;
use crate::ledger::{Ledger, Owner, Shim};

const PATIENCE: Duration = Duration::from_secs(10);
/// Where the guest's server is, for each family.
const FOUR: u16 = 4444;
const SIX: u16 = 6666;

type Pipe = (Option<mpsc::Sender<Vec<u8>>>, Arc<tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>>);

/// Answers each stream with what it got, one piece at a time: a writer waits for the reader.
#[derive(Default)]
struct Echo {
    last: AtomicU64,
    streams: Mutex<HashMap<u64, Pipe>>,
}

impl Echo {
    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Pipe>> {
        self.streams.lock().unwrap()
    }
}

#[async_trait]
impl health_ttrpc::Health for Echo {
    async fn check(
        &self,
        _: &TtrpcContext,
        _: health::CheckRequest,
    ) -> ttrpc::Result<health::HealthCheckResponse> {
        let status = health::health_check_response::ServingStatus::SERVING.into();
        Ok(health::HealthCheckResponse { status, ..Default::default() })
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for Echo {
    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: agent::GuestDetailsRequest,
    ) -> ttrpc::Result<agent::GuestDetailsResponse> {
        let details = agent::AgentDetails { extra_features: vec!["microvm.v1".into()], ..Default::default() };
        Ok(agent::GuestDetailsResponse { agent_details: Some(details).into(), ..Default::default() })
    }
}

#[async_trait]
impl microvm_ttrpc::Guest for Echo {
    async fn dial(
        &self,
        _: &TtrpcContext,
        request: microvm::DialRequest,
    ) -> ttrpc::Result<microvm::DialResponse> {
        let there = if request.ipv6 { SIX } else { FOUR };
        if request.port != u32::from(there) {
            let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "nobody listens");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        let stream = self.last.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel(1);
        self.streams().insert(stream, (Some(sender), Arc::new(tokio::sync::Mutex::new(receiver))));
        Ok(microvm::DialResponse { stream, ..Default::default() })
    }

    async fn read_stream(
        &self,
        _: &TtrpcContext,
        request: microvm::ReadRequest,
    ) -> ttrpc::Result<microvm::ReadResponse> {
        let receiver = self.streams()[&request.stream].1.clone();
        let data = receiver.lock().await.recv().await.unwrap_or_default();
        Ok(microvm::ReadResponse { data, ..Default::default() })
    }

    async fn write_stream(&self, _: &TtrpcContext, request: microvm::WriteRequest) -> ttrpc::Result<Empty> {
        let sender = self.streams()[&request.stream].0.clone().unwrap();
        sender.send(request.data).await.unwrap();
        Ok(Empty::new())
    }

    async fn close_stream(&self, _: &TtrpcContext, request: microvm::CloseRequest) -> ttrpc::Result<Empty> {
        if request.write_only {
            self.streams().get_mut(&request.stream).unwrap().0 = None;
        } else {
            self.streams().remove(&request.stream);
        }
        Ok(Empty::new())
    }
}

/// A pod's namespace, its guest, and the forwarding between the two.
struct Pod {
    dir: tempfile::TempDir,
    ledger: Ledger,
    guest: Arc<Echo>,
    server: ttrpc::r#async::Server,
    forward: Forward,
}

impl Pod {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner {
            namespace: "test".into(),
            sandbox: "forward".into(),
            bundle: PathBuf::new(),
            containerd_address: PathBuf::new(),
            ttrpc_address: String::new(),
            shim: Shim::current().unwrap(),
        };
        let ledger = Ledger::create(&dir.path().join("sandbox"), owner).unwrap();
        create_netns(&dir.path().join("pod"), &ledger).unwrap();
        let guest = Arc::new(Echo::default());
        let socket = dir.path().join("agent");
        let mut server = ttrpc::r#async::Server::new()
            .bind(&format!("unix://{}", socket.display()))
            .unwrap()
            .register_service(agent_ttrpc::create_agent_service(guest.clone()))
            .register_service(health_ttrpc::create_health(guest.clone()))
            .register_service(microvm_ttrpc::create_guest(guest.clone()));
        server.start().await.unwrap();
        let agent = Agent::connect(UnixStream::connect(&socket).await.unwrap(), PATIENCE).await.unwrap();
        let forward = Forward::start(&dir.path().join("pod"), &agent).unwrap();
        Pod { dir, ledger, guest, server, forward }
    }

    /// Runs a client in the namespace, as containerd's port-forward is one.
    async fn client<T: Send + 'static>(
        &self,
        to: &str,
        port: u16,
        work: fn(Client) -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let (netns, to) = (self.dir.path().join("pod"), SocketAddr::new(to.parse::<IpAddr>().unwrap(), port));
        let client = move || {
            let connected =
                inside(&netns, || Client::connect_timeout(&to, PATIENCE).context(|| "connect".into()));
            let client = connected.map_err(|error| std::io::Error::other(error.chain()))?;
            client.set_read_timeout(Some(PATIENCE))?;
            client.set_write_timeout(Some(PATIENCE))?;
            work(client)
        };
        tokio::task::spawn_blocking(client).await.unwrap()
    }

    async fn remove(mut self) {
        self.forward.stop().await;
        self.server.shutdown().await.unwrap();
        assert_eq!(self.ledger.release_all().len(), 0);
    }
}

/// Sends more than all buffers hold, half-closes, and reads to the end.
fn echo(mut client: Client) -> std::io::Result<usize> {
    let mut writer = client.try_clone()?;
    let writing = std::thread::spawn(move || {
        writer.write_all(&vec![7; 3 << 20])?;
        writer.shutdown(Shutdown::Write)
    });
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes)?;
    writing.join().unwrap()?;
    assert!(bytes.iter().all(|byte| *byte == 7));
    Ok(bytes.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_port_of_both_loopbacks_leads_to_the_guest() {
    let pod = Pod::new().await;
    for (to, port) in [("127.0.0.1", FOUR), ("127.0.0.9", FOUR), ("::1", SIX), ("127.0.0.1", SIX)] {
        assert_eq!(pod.client(to, port, echo).await.unwrap(), 3 << 20, "{to} {port}");
    }
    assert_eq!(pod.guest.streams().len(), 0, "every stream is dropped once it has ended");
    pod.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_without_a_server_is_an_error_and_the_end_of_forwarding_is_one() {
    let pod = Pod::new().await;
    let read = |mut client: Client| client.read(&mut [0; 1]);
    for (to, port) in [("127.0.0.1", 1), ("::1", FOUR)] {
        // It may come as early as the answer to connect(2).
        let error = pod.client(to, port, read).await.unwrap_err().to_string();
        assert!(error.contains("reset"), "{to} {port}: {error}");
    }
    pod.forward.stop().await;
    let refused = pod.client("127.0.0.1", FOUR, echo).await.unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
    pod.remove().await;
}
