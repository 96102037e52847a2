//! The binary as containerd runs it: `start`, the server behind its socket, `delete`, `-info`. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of a test fail it by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{ConnectRequest, DeleteResponse, ShutdownRequest};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use shim::ledger::{Ledger, Owner, Resource, Shim, start_time};
use tempfile::TempDir;
use ttrpc::context::Context;

const LIMIT: Duration = Duration::from_secs(10);

/// A containerd that is none: directories, sockets' paths, and the command line.
struct Daemon {
    dir: TempDir,
}

impl Daemon {
    fn new() -> Self {
        let daemon = Daemon { dir: tempfile::Builder::new().prefix("b").tempdir().unwrap() };
        let config = format!("run_dir = \"{}\"\nlog_level = \"debug\"\n", daemon.path("run").display());
        fs::write(daemon.path("microvm.toml"), config).unwrap();
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle as containerd prepares it before it calls `start`.
    fn bundle(&self, id: &str, annotations: &str) -> PathBuf {
        let bundle = self.path("ns").join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let spec = format!("{{\"ociVersion\":\"1.0.2\",\"annotations\":{{{annotations}}}}}");
        fs::write(bundle.join("config.json"), spec).unwrap();
        mkfifo(&bundle.join("log"), Mode::from_bits_truncate(0o700)).unwrap();
        bundle
    }

    fn run(&self, id: &str, action: &str, input: &[u8]) -> Output {
        let bundle = self.path("ns").join(id);
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-microvm-v1"));
        command.args(["-namespace", "ns", "-address"]).arg(self.path("containerd.sock"));
        command.args(["-publish-binary", "/bin/true", "-id", id]);
        if action == "delete" {
            command.arg("-bundle").arg(&bundle);
        }
        command.arg(action).current_dir(bundle).env("MICROVM_CONFIG", self.path("microvm.toml"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// `start` in the dialect that lets the socket be in our own directory; answers its path.
    fn start(&self, id: &str) -> PathBuf {
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: "ns".into(),
            socket_dir: Some(self.path("s").to_str().unwrap().into()),
            ..Default::default()
        };
        let output = self.run(id, "start", &params.write_to_bytes().unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty());
        let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        result.address.strip_prefix("unix://").unwrap().into()
    }

    fn delete(&self, id: &str) -> DeleteResponse {
        let output = self.run(id, "delete", b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    }
}

async fn client(socket: &Path) -> TaskClient {
    TaskClient::new(Client::connect(&format!("unix://{}", socket.display())).await.unwrap())
}

async fn shim_pid(socket: &Path) -> u32 {
    let request = ConnectRequest { id: "nosuch".into(), ..Default::default() };
    let answer = client(socket).await.connect(Context::default(), &request).await.unwrap();
    assert_eq!(answer.task_pid, 0);
    answer.shim_pid
}

async fn shut_down(socket: &Path) {
    let pid = shim_pid(socket).await;
    // The connection may break before the answer.
    let _ = client(socket).await.shutdown(Context::default(), &ShutdownRequest::default()).await;
    wait_until(|| !is_running(pid)).await;
    assert!(!socket.exists());
}

async fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A zombie does not run. What started it here is gone, so it may stay one for a while.
fn is_running(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !(status.is_empty() || status.contains("State:\tZ"))
}

#[tokio::test]
async fn a_pods_containers_share_one_shim_until_its_shutdown() {
    let daemon = Daemon::new();
    let bundle = daemon.bundle("pod", "\"io.kubernetes.cri.sandbox-id\":\"pod\"");
    let member = daemon.bundle("c1", "\"io.kubernetes.cri.sandbox-id\":\"pod\"");
    let socket = daemon.start("pod");
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let pid = shim_pid(&socket).await;
    assert_eq!(fs::read_to_string(bundle.join("address")).unwrap(), format!("unix://{}", socket.display()));
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd, bundle.canonicalize().unwrap());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert_eq!(stat.split_whitespace().nth(5).unwrap(), pid.to_string(), "leads its own session");

    assert_eq!(daemon.start("c1"), socket);
    assert_eq!(shim_pid(&socket).await, pid);
    assert!(member.join("address").exists() && !member.join("shim.pid").exists());

    let mut log =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("log")).unwrap();
    let mut line = [0; 4096];
    let length = log.read(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line[..length]);
    assert!(
        line.contains("level=info msg=\"Serving on") && line.contains("namespace=ns sandbox=pod"),
        "{line}"
    );
    shut_down(&socket).await;
}

#[tokio::test]
async fn old_containerds_get_json_and_a_dead_socket_is_no_obstacle() {
    let daemon = Daemon::new();
    let bundle = daemon.bundle("c", "");
    for _ in 0..2 {
        let output = daemon.run("c", "start", b"");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let reply: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let socket = PathBuf::from(reply["address"].as_str().unwrap().strip_prefix("unix://").unwrap());
        let pid = shim_pid(&socket).await;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.try_into().unwrap()),
            nix::sys::signal::SIGKILL,
        )
        .unwrap();
        // The first thread is a zombie before the last one lets go of the socket.
        wait_until(|| std::os::unix::net::UnixStream::connect(&socket).is_err()).await;
        assert!(socket.exists());
    }
    let socket = fs::read_to_string(bundle.join("address")).unwrap();
    daemon.delete("c");
    assert!(!Path::new(socket.strip_prefix("unix://").unwrap()).exists());
}

#[tokio::test]
async fn delete_undoes_what_the_ledger_says_and_may_come_again() {
    let daemon = Daemon::new();
    let bundle = daemon.bundle("pod", "");
    let socket = daemon.start("pod");
    let pid = shim_pid(&socket).await;
    let owner = Owner {
        namespace: "ns".into(),
        sandbox: "pod".into(),
        bundle: bundle.clone(),
        containerd_address: daemon.path("containerd.sock"),
        ttrpc_address: String::new(),
        shim: Shim { pid, start_time: start_time(pid).unwrap() },
    };
    let dir = daemon.path("run/ns/pod");
    let ledger = Ledger::create(&dir, owner).unwrap();
    let left = daemon.path("left");
    ledger.claim(Resource::File(left.clone())).unwrap();
    fs::write(&left, "").unwrap();
    let mut vmm = Command::new("sleep").arg("600").spawn().unwrap();
    ledger.claim(Resource::process(vmm.id(), "VMM").unwrap()).unwrap();

    let response = daemon.delete("pod");
    assert_eq!(response.exit_status, 137);
    assert!(response.exited_at.seconds > 0);
    assert!(!is_running(pid) && !left.exists() && !dir.exists() && !socket.exists());
    assert!(!vmm.wait().unwrap().success());
    let started = Instant::now();
    assert_eq!(daemon.delete("pod").exit_status, 137);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn deleting_a_member_spares_the_pod() {
    let daemon = Daemon::new();
    daemon.bundle("pod", "");
    daemon.bundle("c1", "\"io.kubernetes.cri.sandbox-id\":\"pod\"");
    let socket = daemon.start("pod");
    let pid = shim_pid(&socket).await;
    daemon.delete("c1");
    assert_eq!(shim_pid(&socket).await, pid);
    shut_down(&socket).await;
    daemon.delete("c1");
}

#[tokio::test]
async fn a_broken_config_is_the_users_answer_and_leaves_no_socket() {
    let daemon = Daemon::new();
    let bundle = daemon.bundle("c", "");
    fs::write(daemon.path("microvm.toml"), "default_vcpus = \"many\"\n").unwrap();
    let output = daemon.run("c", "start", b"");
    assert!(!output.status.success() && output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("default_vcpus") && text.contains("many"), "{text}");
    assert!(!bundle.join("address").exists() && !bundle.join("shim.pid").exists());
}

#[tokio::test]
async fn leftovers_of_a_dead_shim_are_released_by_the_next_start() {
    let daemon = Daemon::new();
    let bundle = daemon.bundle("pod", "");
    let dir = daemon.path("run/ns/pod");
    let owner = Owner {
        namespace: "ns".into(),
        sandbox: "pod".into(),
        bundle,
        containerd_address: daemon.path("containerd.sock"),
        ttrpc_address: String::new(),
        shim: Shim { pid: 1, start_time: u64::MAX },
    };
    Ledger::create(&dir, owner).unwrap();
    let socket = daemon.start("pod");
    assert!(!dir.exists());
    shut_down(&socket).await;
}

#[test]
fn the_runtime_describes_itself_without_any_environment() {
    let run = |flag: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-microvm-v1"));
        command.arg(flag).env_clear().stdin(Stdio::null()).output().unwrap()
    };
    let version = run("-v");
    assert!(version.status.success());
    assert!(String::from_utf8(version.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    let info = RuntimeInfo::parse_from_bytes(&run("-info").stdout).unwrap();
    assert_eq!(info.name, "io.containerd.microvm.v1");
    assert!(info.features.type_url.ends_with("runtime-spec/1/features/Features"));
    let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
    assert!(features["mountOptions"].as_array().unwrap().contains(&"rro".into()));
    assert!(!features["linux"]["namespaces"].as_array().unwrap().contains(&"user".into()));
}
