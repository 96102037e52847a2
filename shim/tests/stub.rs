//! The stub of a task, with the real binary: what `/proc` shows of it, and when it ends. Needs root.
#![expect(clippy::unwrap_used, reason = "helpers of a test fail it by panicking")]

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shim::error::Kind;
use shim::stub::{MODE, Net, Place, Stub};
use shim::testing::ledger;

fn place() -> Place {
    Place { program: env!("CARGO_BIN_EXE_containerd-shim-microvm-v1").into(), ..Place::default() }
}

fn proc(pid: u32, name: &str) -> PathBuf {
    format!("/proc/{pid}/{name}").into()
}

fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(proc(pid, "status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_stub_shows_the_tasks_place_and_nothing_of_the_host() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = ledger(&temp.path().join("sandbox")).unwrap();
    let stub = Stub::spawn(&Place { net: Net::New, ..place() }, &ledger).await.unwrap();
    let pid = stub.pid();

    assert_eq!(fs::read_to_string(proc(pid, "comm")).unwrap().trim(), "microvm-task");
    assert_eq!(fs::read_dir(proc(pid, "root")).unwrap().count(), 0);
    assert!(fs::write(proc(pid, "root/x"), "").is_err());
    assert_eq!(fs::read_to_string(proc(pid, "mounts")).unwrap().lines().count(), 1);
    assert_eq!(fs::read_dir(proc(pid, "fd")).unwrap().count(), 1);
    for capabilities in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(status(pid, capabilities).trim_matches('0'), "");
    }
    assert_eq!((status(pid, "Uid").as_str(), status(pid, "NoNewPrivs").as_str()), ("65534", "1"));

    // A second stub joins the network namespace that the first one made.
    let net = Net::Join(proc(pid, "ns/net"));
    let second = Stub::spawn(&Place { net, ..place() }, &ledger).await.unwrap();
    let namespace = |pid| fs::read_link(proc(pid, "ns/net")).unwrap();
    assert_eq!(namespace(pid), namespace(second.pid()));
    assert_ne!(namespace(pid), namespace(std::process::id()));

    assert_eq!(ledger.resources().len(), 2);
    second.end().await.unwrap();
    stub.end().await.unwrap();
    stub.end().await.unwrap();
    assert!(!proc(pid, "").exists());
    assert!(ledger.release_all().is_empty());
}

#[tokio::test]
async fn a_stub_that_cannot_get_there_says_why() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = ledger(&temp.path().join("sandbox")).unwrap();
    let nowhere = temp.path().join("netns");
    let place = Place { net: Net::Join(nowhere.clone()), ..place() };
    let error = Stub::spawn(&place, &ledger).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.to_string().contains(nowhere.to_str().unwrap()), "{error}");
    assert!(ledger.resources().is_empty());
}

#[tokio::test]
async fn a_stub_sits_in_the_cgroup_and_its_death_is_noticed() {
    let temp = tempfile::tempdir().unwrap();
    let ledger = ledger(&temp.path().join("sandbox")).unwrap();
    let mut roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"].into_iter().map(Path::new);
    let root = roots.find(|root| root.join("cgroup.procs").exists()).unwrap();
    let cgroup = root.join(format!("microvm-stub-{}", std::process::id()));
    ledger.claim(shim::ledger::Resource::Cgroup(cgroup.clone())).unwrap();
    fs::create_dir(&cgroup).unwrap();
    let place = Place { cgroup_procs: vec![cgroup.join("cgroup.procs")], ..place() };
    let stub = Stub::spawn(&place, &ledger).await.unwrap();
    assert_eq!(fs::read_to_string(cgroup.join("cgroup.procs")).unwrap(), format!("{}\n", stub.pid()));
    assert!(ledger.release_all().is_empty());
    tokio::time::timeout(Duration::from_secs(5), stub.ended()).await.unwrap();
    assert!(!cgroup.exists());
}

/// Whatever kills the shim, its end of the socket closes.
#[tokio::test]
async fn a_stub_ends_when_the_shims_socket_closes() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let theirs = std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs));
    let mut stub = tokio::process::Command::new(place().program).arg(MODE).stdin(theirs).spawn().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut word = [0; 5];
    ours.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ready");
    assert!(stub.try_wait().unwrap().is_none());
    drop(ours);
    let ended = tokio::time::timeout(Duration::from_secs(10), stub.wait()).await.unwrap().unwrap();
    assert!(ended.success());
}
