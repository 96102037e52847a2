//! What the tests share: a served agent in namespaces of its own, hosts that connect to it, requests as a host makes them.

use std::fs;
use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::container::Runtime;
use agent::network::Network;
use agent::reaper::Reaper;
use agent::rpc::{self, Parts};
use agent::sandbox::Sandbox;
use agent_proto::agent::{CreateContainerRequest, CreateSandboxRequest, Storage};
use agent_proto::agent_ttrpc::AgentServiceClient;
use agent_proto::microvm_ttrpc::GuestClient;
use agent_proto::oci;
use futures::StreamExt as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::context::{self, Context};

/// No single step takes longer, however busy the machine is.
pub(crate) const LONG: Duration = Duration::from_secs(60);
const ROLE: &str = "io.containerd.microvm.v1.role";
const SHARED: &str = "/run/kata-containers/shared/containers";

pub(crate) struct World {
    pub(crate) parts: Arc<Parts>,
    accept: mpsc::UnboundedSender<std::io::Result<UnixStream>>,
}

/// One connection of a host.
pub(crate) struct Host {
    pub(crate) client: ttrpc::asynchronous::Client,
    pub(crate) agent: AgentServiceClient,
    pub(crate) guest: GuestClient,
}

/// Runs a test as root. Nothing of it is left: its mounts and network go with its namespaces, its cgroup is checked.
pub(crate) fn test<F: Future<Output = ()>>(body: impl FnOnce(World) -> F + Send + 'static) {
    static ONE_REAPER: Mutex<()> = Mutex::new(());
    let _alone = ONE_REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("this test must be run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        // What the agent asks of the kernel's caches must not reach this machine's.
        fs::write("/run/caches", "").unwrap();
        mount(Some("/run/caches"), "/proc/sys/vm/drop_caches", none, MsFlags::MS_BIND, none).unwrap();
        image();
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let cgroups = cgroups();
        tokio.block_on(async {
            let world = World::new(&cgroups).await;
            let parts = world.parts.clone();
            timeout(LONG, body(world)).await.expect("the test takes too long");
            parts.sandbox.tear_down().await.unwrap();
        });
        tokio.shutdown_timeout(Duration::from_secs(5));
        fs::remove_dir(cgroups.join("microvm")).and_then(|()| fs::remove_dir(&cgroups)).unwrap();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

fn cgroups() -> PathBuf {
    let unified = Path::new("/sys/fs/cgroup/unified");
    let all = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
    let cgroups = all.join(format!("agent-service-{}", std::process::id()));
    fs::create_dir(&cgroups).unwrap();
    cgroups
}

/// An image where the share has it, with this machine's programs.
fn image() {
    let root = Path::new(SHARED).join("web@1/rootfs");
    fs::create_dir_all(root.join("etc")).unwrap();
    for name in ["proc", "dev", "usr", "old"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64", "sbin"] {
        symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
    fs::write(root.join("file"), "of the image").unwrap();
}

impl World {
    async fn new(cgroups: &Path) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_microvm-agent"));
        let network = Network::start().unwrap();
        network.start_loopback().await.unwrap();
        let reaper = Reaper::start().unwrap();
        let runtime = Runtime::new(reaper.clone(), cgroups, program.clone()).unwrap();
        let sandbox = Sandbox::new(runtime, reaper, program);
        let parts = Arc::new(Parts { sandbox, network, end: Notify::new() });
        let (accept, incoming) = mpsc::unbounded_channel();
        let incoming = futures::stream::unfold(incoming, |mut incoming| async move {
            incoming.recv().await.map(|socket| (socket, incoming))
        });
        tokio::spawn(rpc::serve(Listener::new(incoming.boxed()), parts.clone()));
        Self { parts, accept }
    }

    pub(crate) fn connect(&self) -> Host {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.accept.send(Ok(theirs)).unwrap();
        let client = ttrpc::asynchronous::Client::new(Socket::new(ours));
        Host {
            agent: AgentServiceClient::new(client.clone()),
            guest: GuestClient::new(client.clone()),
            client,
        }
    }

    /// A host with a sandbox.
    pub(crate) async fn pod(&self) -> Host {
        let host = self.connect();
        let request = CreateSandboxRequest {
            hostname: "podname".into(),
            dns: vec!["10.0.0.10".into()],
            sandbox_pidns: true,
            ..Default::default()
        };
        host.agent.create_sandbox(ctx(), &request).await.unwrap();
        host
    }
}

impl Host {
    /// Carrier and workload of a container that runs a script.
    pub(crate) async fn run(&self, script: &str) {
        self.agent.create_container(ctx(), &carrier()).await.unwrap();
        self.agent.create_container(ctx(), &workload(script)).await.unwrap();
        self.agent.start_container(ctx(), &start("web_ovl")).await.unwrap();
    }

    /// What the container writes, until `end` is part of it.
    pub(crate) async fn read_until(&self, end: &str) -> String {
        let mut all = String::new();
        while !all.contains(end) {
            let data = self.agent.read_stdout(ctx(), &read()).await.unwrap().data;
            assert!(!data.is_empty(), "the output ended at {all:?}");
            all.push_str(&String::from_utf8(data).unwrap());
        }
        all
    }
}

pub(crate) fn ctx() -> Context {
    context::with_duration(LONG)
}

pub(crate) fn read() -> agent_proto::agent::ReadStreamRequest {
    agent_proto::agent::ReadStreamRequest { container_id: "web_ovl".into(), len: 4096, ..Default::default() }
}

pub(crate) fn start(id: &str) -> agent_proto::agent::StartContainerRequest {
    agent_proto::agent::StartContainerRequest { container_id: id.into(), ..Default::default() }
}

pub(crate) fn remove(id: &str) -> agent_proto::agent::RemoveContainerRequest {
    agent_proto::agent::RemoveContainerRequest { container_id: id.into(), ..Default::default() }
}

fn spec(role: &str, root: &str) -> oci::Spec {
    oci::Spec {
        Root: Some(oci::Root { Path: root.into(), ..Default::default() }).into(),
        Annotations: [(ROLE.to_owned(), role.to_owned())].into(),
        ..Default::default()
    }
}

pub(crate) fn carrier() -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: "web".into(),
        OCI: Some(spec("carrier", &format!("{SHARED}/web@1/rootfs"))).into(),
        ..Default::default()
    }
}

pub(crate) fn workload(script: &str) -> CreateContainerRequest {
    let own = "/run/kata-containers/web_ovl";
    let overlay = Storage {
        driver: "overlayfs".into(),
        fstype: "overlay".into(),
        source: "overlay".into(),
        driver_options: vec!["microvm.upper-size=4194304".into()],
        options: vec![
            "lowerdir=/run/kata-containers/web/rootfs".into(),
            format!("upperdir={own}/upper/fs"),
            format!("workdir={own}/upper/work"),
        ],
        mount_point: format!("{own}/rootfs"),
        ..Default::default()
    };
    let process = oci::Process {
        Args: ["sh", "-c", script].map(String::from).into(),
        Env: vec!["PATH=/usr/bin".into()],
        Cwd: "/".into(),
        Capabilities: Some(oci::LinuxCapabilities::new()).into(),
        ..Default::default()
    };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| oci::Mount {
        destination: destination.into(),
        type_: kind.into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let namespace = |kind: &str| oci::LinuxNamespace { Type: kind.into(), ..Default::default() };
    let namespaces = ["pid", "mount", "ipc", "uts"].map(namespace).into();
    let spec = oci::Spec {
        Process: Some(process).into(),
        Mounts: vec![
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["mode=755"]),
            mount("/usr", "bind", "/usr", &["rbind", "ro"]),
            mount("/etc/resolv.conf", "bind", "/run/kata-containers/sandbox/resolv.conf", &["bind", "ro"]),
        ],
        Linux: Some(oci::Linux { Namespaces: namespaces, ..Default::default() }).into(),
        ..spec("workload", &format!("{own}/rootfs"))
    };
    CreateContainerRequest {
        container_id: "web_ovl".into(),
        storages: vec![overlay],
        OCI: Some(spec).into(),
        ..Default::default()
    }
}

/// The code and text of a refusal.
pub(crate) fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no answer of the agent: {other}"),
    }
}

/// What is mounted below the agent's directory, and what lies in it beside the share and the sandbox.
pub(crate) fn left() -> (Vec<String>, Vec<String>) {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(String::from);
    let entries = fs::read_dir("/run/kata-containers").unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let others = names.filter(|name| !["shared", "sandbox"].contains(&name.as_str()));
    (points.filter(|at| at.starts_with("/run/kata-containers/")).collect(), others.collect())
}
