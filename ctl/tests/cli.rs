//! The command as people and scripts run it: what it prints, and its exit status.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy.toml's exception covers unit tests only")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use shim::snapshot::manifest::{GuestAssets, MachineShape, Made, SandboxFacts};
use shim::snapshot::{Contents, Form, Save};
use shim::vm::VmmIdentity;

/// A node of its own: config, store, and a snapshot outside of it.
struct Node {
    temp: tempfile::TempDir,
    snapshot: PathBuf,
}

impl Node {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = temp.path().join("store");
        let run = temp.path().join("run");
        let config = format!("snapshot_store = {:?}\nrun_dir = {:?}\n", store, run);
        fs::write(temp.path().join("config.toml"), config).unwrap();
        let snapshot = temp.path().join("snap");
        save(temp.path(), &snapshot);
        Self { temp, snapshot }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_microvmctl"));
        let socket = self.temp.path().join("none.sock");
        command.arg("--config").arg(self.temp.path().join("config.toml")).arg("--address").arg(socket);
        command.args(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// Fails with status 1 and one line on stderr that has `why`.
    fn fails(&self, args: &[&str], why: &str) {
        let done = self.run(args);
        let error = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains(why) && error.lines().count() == 1, "want {why:?} in {error}");
        assert!(done.stdout.is_empty());
    }
}

fn save(temp: &Path, dir: &Path) {
    let ram = temp.join("mem");
    let file = fs::File::create(&ram).unwrap();
    file.set_len(2 << 20).unwrap();
    file.write_all_at(b"guest", 4096).unwrap();
    let text = |text: &str| text.to_owned();
    let digest = format!("sha256:{}", "a".repeat(64));
    let contents = Contents {
        made: Made::now(),
        vmm: VmmIdentity {
            name: text("qemu"),
            version: text("11.1.0"),
            accelerator: text("tcg"),
            cpu: text("max"),
            machine: text("pc-q35-11.1"),
        },
        guest: GuestAssets {
            architecture: text("x86_64"),
            version: text("1"),
            kernel: digest.parse().unwrap(),
            initramfs: digest.parse().unwrap(),
        },
        machine: MachineShape {
            vcpus: 1,
            memory: 2 << 20,
            nics: vec![],
            shares: vec![],
            kernel_params: String::new(),
        },
        sandbox: SandboxFacts { pod_name: text("web-0"), ..SandboxFacts::default() },
        containers: vec![],
    };
    let mut save = Save::begin(dir, Form::Packed).unwrap();
    fs::write(dir.join("state"), "state").unwrap();
    save.capture_ram(&ram, Instant::now() + Duration::from_secs(60)).unwrap();
    save.finish(contents, &[text("state")]).unwrap();
}

#[test]
fn snapshots_come_are_checked_and_go() {
    let node = Node::new();
    let from = node.snapshot.to_str().unwrap();
    assert_eq!(node.ok(&["snapshot", "ls"]).lines().count(), 1, "heads only");
    assert!(
        node.ok(&["snapshot", "import", from, "web"])
            .starts_with("web: imported; 0 containers, 2 MiB of RAM")
    );
    node.ok(&["snapshot", "import", "--ram", "packed", from, "web2"]);
    let list = node.ok(&["snapshot", "ls"]);
    let lines: Vec<_> = list.lines().collect();
    assert!(
        lines[1].starts_with("web ") && lines[1].contains("web-0") && lines[1].contains("plain"),
        "{list}"
    );
    assert!(lines[2].starts_with("web2") && lines[2].contains("packed"), "{list}");
    assert!(node.ok(&["snapshot", "verify", "web"]).starts_with("web: verified"));
    assert_eq!(node.ok(&["snapshot", "rm", "web2"]), "web2: removed\n");

    let json: Value = serde_json::from_str(&node.ok(&["--json", "snapshot", "ls"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(json[0]["name"], "web");
    assert_eq!(json[0]["manifest"]["contents"]["sandbox"]["pod_name"], "web-0");
}

#[test]
fn failures_are_one_line_and_status_1() {
    let node = Node::new();
    let from = node.snapshot.to_str().unwrap();
    node.fails(&["snapshot", "verify", "none"], "no snapshot \"none\"");
    node.fails(&["snapshot", "rm", "../snap"], "can't be the name");
    node.fails(&["snapshot", "create", "web", "x"], "none.sock");
    node.fails(&["snapshot", "import", "./none", "x"], "./none");
    node.fails(&["snapshot", "import", "registry.example/x:1", "x"], "is no file, so it should be an image");
    node.fails(&["snapshot", "import", "/dev/null", "x"], "neither a directory nor an archive");
    node.ok(&["snapshot", "import", from, "web"]);
    node.fails(&["snapshot", "import", from, "web"], "already");
    let ram = node.temp.path().join("store/web/ram");
    fs::OpenOptions::new().write(true).open(ram).unwrap().write_all_at(b"G", 4096).unwrap();
    node.fails(&["snapshot", "verify", "web"], "does not match its checksum");
    fs::write(node.temp.path().join("store/web/extra"), "").unwrap();
    let list = node.ok(&["snapshot", "ls"]);
    assert!(list.contains("\"extra\""), "the list says what is wrong with it: {list}");
}

#[test]
fn wrong_usage_is_status_2() {
    let node = Node::new();
    for args in [&["snapshot"][..], &["snapshot", "rm"], &["mend"], &[]] {
        assert_eq!(node.run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn doctor_names_what_is_broken() {
    let node = Node::new();
    fs::write(node.temp.path().join("config.toml"), "memmory = 1\nvmm = 7\n").unwrap();
    let done = node.run(&["--json", "doctor"]);
    assert_eq!(done.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&done.stdout).unwrap();
    let of = |check: &str| {
        let all = findings.as_array().unwrap();
        all.iter()
            .find(|finding| finding["check"] == check)
            .unwrap_or_else(|| panic!("no {check} in {findings}"))
    };
    assert_eq!(of("config")["outcome"], "broken");
    let detail = of("config")["detail"].as_str().unwrap();
    assert!(detail.contains("memmory") && detail.contains("vmm"), "every problem at once: {detail}");
    assert_eq!(of("mounts")["outcome"], "ok");
    assert_eq!(of("containerd")["outcome"], "broken");
    assert!(of("containerd")["detail"].as_str().unwrap().contains("none.sock"));
    let text = String::from_utf8(node.run(&["doctor"]).stdout).unwrap();
    assert!(text.contains("Pods can't start on this node"), "{text}");
}
