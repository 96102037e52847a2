//! Checkpoint and restore through the real snapshot format, with a scripted VM.

use shim::error::Kind;
use shim::task::{Status, Tasks};
use shim::testing::Fault;

use crate::host::{Host, process};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_goes_on_in_a_new_one_and_again_from_there() {
    let first = Host::new("first");
    first.tasks.create(first.create("first", &["run"])).await.unwrap();
    first.tasks.start(process("first", "")).await.unwrap();
    let snapshot = first.dir.path().join("snapshot");
    first.tasks.checkpoint("first", snapshot.clone(), false).await.unwrap();
    assert_eq!(first.tasks.state(process("first", "")).await.unwrap().status, Status::Running);
    assert_eq!(first.vmm.log(), ["boot", "connect", "pause", "save", "resume"]);

    let second = Host::new("second");
    let mut request = second.create("second", &["run"]);
    request.checkpoint = snapshot.display().to_string();
    second.tasks.create(request).await.unwrap();
    // containerd removes the directory after Create.
    std::fs::remove_dir_all(&snapshot).unwrap();
    second.tasks.start(process("second", "")).await.unwrap();
    assert_eq!(second.vmm.log(), ["restore", "resume", "connect"]);
    let log = second.vmm.guest().log();
    assert!(log[0].starts_with("renew "), "{log:?}");
    assert!(log.last().is_some_and(|line| line.starts_with("resume ")), "{log:?}");

    let again = second.dir.path().join("again");
    second.tasks.checkpoint("second", again.clone(), true).await.unwrap();
    assert_eq!(second.ended("second", "").await.status, 137);
    assert!(again.join("manifest.json").exists());
    second.tasks.delete(process("second", "")).await.unwrap();
    second.assert_clean().await;

    first.tasks.kill(process("first", ""), 9, false).await.unwrap();
    first.ended("first", "").await;
    first.tasks.delete(process("first", "")).await.unwrap();
    first.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_checkpoint_leaves_the_guest_running_and_the_directory_empty() {
    let host = Host::new("full");
    host.vmm.fail(Fault::Save);
    host.tasks.create(host.create("full", &["run"])).await.unwrap();
    host.tasks.start(process("full", "")).await.unwrap();
    let snapshot = host.dir.path().join("snapshot");
    std::fs::create_dir(&snapshot).unwrap();
    let error = host.tasks.checkpoint("full", snapshot.clone(), false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert_eq!(std::fs::read_dir(&snapshot).unwrap().count(), 0);
    assert_eq!(host.vmm.log(), ["boot", "connect", "pause", "save", "resume"]);
    assert!(host.vmm.guest().log().last().is_some_and(|line| line.starts_with("thaw ")));
    host.tasks.kill(process("full", ""), 9, false).await.unwrap();
    host.ended("full", "").await;
    host.tasks.delete(process("full", "")).await.unwrap();
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_refused_and_leaves_nothing() {
    let host = Host::new("source");
    host.tasks.create(host.create("source", &["run"])).await.unwrap();
    host.tasks.start(process("source", "")).await.unwrap();
    let snapshot = host.dir.path().join("snapshot");
    host.tasks.checkpoint("source", snapshot.clone(), true).await.unwrap();
    host.tasks.delete(process("source", "")).await.unwrap();
    host.assert_clean().await;
    let state = snapshot.join("state");
    let mut bytes = std::fs::read(&state).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&state, bytes).unwrap();

    let target = Host::new("target");
    let mut request = target.create("target", &["run"]);
    request.checkpoint = snapshot.display().to_string();
    let error = target.tasks.create(request).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
    target.assert_clean().await;
}
