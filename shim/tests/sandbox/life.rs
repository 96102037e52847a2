//! The life of containers and execs: states, events in containerd's order, exit codes, pids.

use serde_json::json;
use shim::error::Kind;
use shim::task::{Exec, Status, Streams, Tasks};

use crate::host::{Host, process};

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_container_runs_ends_and_leaves_nothing() {
    let host = Host::new("plain");
    let pid = host.tasks.create(host.create("plain", &["exit", "7"])).await.unwrap();
    let state = host.tasks.state(process("plain", "")).await.unwrap();
    assert_eq!((state.status, state.pid), (Status::Created, pid));
    assert!(std::path::Path::new(&format!("/proc/{pid}/ns/net")).exists());

    assert_eq!(host.tasks.start(process("plain", "")).await.unwrap(), pid);
    assert_eq!(host.ended("plain", "").await.status, 7);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the pid must die with the task");
    assert_eq!(
        host.vmm.guest().log(),
        ["sandbox ", "create plain_", "create plain__ovl", "start plain__ovl"]
            .map(|line| line.replace("plain_", &guest_name("plain")))
    );

    let deleted = host.tasks.delete(process("plain", "")).await.unwrap();
    assert_eq!((deleted.pid, deleted.exit.status), (pid, 7));
    assert_eq!(host.events().await, ["create", "start", "exit", "delete"]);
    assert!(host.tasks.shutdown().await.unwrap());
    host.assert_clean().await;
}

/// What a plain id is called in the guest.
fn guest_name(id: &str) -> String {
    shim::guest::GuestName::from_id(id).as_str().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_two_containers_shares_one_vm() {
    let host = Host::new("pod");
    host.tasks.create(host.create_with("pod", &["pause"], host.cri(None))).await.unwrap();
    host.tasks.start(process("pod", "")).await.unwrap();
    let mut pids = Vec::new();
    for name in ["web", "db"] {
        let id = format!("id-{name}");
        pids.push(host.tasks.create(host.create_with(&id, &["run"], host.cri(Some(name)))).await.unwrap());
        host.tasks.start(process(&id, "")).await.unwrap();
    }
    assert_eq!(host.vmm.log().iter().filter(|line| *line == "boot").count(), 1);
    assert_eq!(host.vmm.guest().containers(), ["db", "db_ovl", "web", "web_ovl"]);
    assert_ne!(pids[0], pids[1]);

    host.tasks.kill(process("id-web", ""), 15, false).await.unwrap();
    assert_eq!(host.ended("id-web", "").await.status, 143);
    host.tasks.delete(process("id-web", "")).await.unwrap();
    assert_eq!(host.vmm.guest().containers(), ["db", "db_ovl"]);
    assert!(!host.tasks.shutdown().await.unwrap(), "a shim with containers must stay");

    host.tasks.kill(process("pod", ""), 9, false).await.unwrap();
    assert_eq!(host.ended("id-db", "").await.status, 137);
    assert_eq!(host.ended("pod", "").await.status, 137);
    host.tasks.delete(process("id-db", "")).await.unwrap();
    host.tasks.delete(process("pod", "")).await.unwrap();
    let events = host.events().await;
    assert_eq!(events[events.len() - 4..], ["exit", "exit", "delete", "delete"]);
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_name_is_used_again_at_another_place_of_the_share() {
    let host = Host::new("again");
    host.tasks.create(host.create_with("again", &["pause"], host.cri(None))).await.unwrap();
    host.tasks.start(process("again", "")).await.unwrap();
    for attempt in 1..=2 {
        let id = format!("id-{attempt}");
        host.tasks.create(host.create_with(&id, &["exit", "0"], host.cri(Some("web")))).await.unwrap();
        let images = host.sandbox_dir().join("share/images");
        assert!(images.join(format!("web@{attempt}/rootfs/bin/tool")).exists(), "{images:?}");
        host.tasks.start(process(&id, "")).await.unwrap();
        host.ended(&id, "").await;
        host.tasks.delete(process(&id, "")).await.unwrap();
    }
    host.tasks.kill(process("again", ""), 9, false).await.unwrap();
    host.tasks.delete(process("again", "")).await.unwrap();
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_its_own_pid_exit_and_events() {
    let host = Host::new("exec");
    let pid = host.tasks.create(host.create("exec", &["run"])).await.unwrap();
    let exec = |id: &str, args: &[&str]| Exec {
        id: "exec".into(),
        exec: id.into(),
        process: serde_json::from_value(json!({"cwd": "/", "args": args, "user": {"uid": 0, "gid": 0}}))
            .unwrap(),
        streams: Streams::default(),
    };
    let early = host.tasks.exec(exec("early", &["run"])).await.unwrap_err();
    assert_eq!(early.kind(), Kind::FailedPrecondition);
    host.tasks.start(process("exec", "")).await.unwrap();
    host.tasks.exec(exec("a", &["exit", "3"])).await.unwrap();
    assert_eq!(host.tasks.exec(exec("a", &["run"])).await.unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(host.tasks.state(process("exec", "a")).await.unwrap().status, Status::Created);
    host.tasks.start(process("exec", "a")).await.unwrap();
    assert_eq!(host.ended("exec", "a").await.status, 3);

    host.tasks.exec(exec("b", &["run"])).await.unwrap();
    let own = host.tasks.start(process("exec", "b")).await.unwrap();
    let pids: Vec<_> = host.tasks.pids("exec").await.unwrap().into_iter().map(|pid| pid.pid).collect();
    assert_eq!(pids, [pid, own]);

    host.tasks.exec(exec("c", &["missing"])).await.unwrap();
    let error = host.tasks.start(process("exec", "c")).await.unwrap_err();
    assert!(error.chain().contains("executable file not found"), "{}", error.chain());
    host.tasks.delete(process("exec", "c")).await.unwrap();

    host.tasks.kill(process("exec", ""), 9, true).await.unwrap();
    host.tasks.kill(process("exec", "b"), 9, false).await.unwrap();
    host.ended("exec", "").await;
    host.tasks.delete(process("exec", "")).await.unwrap();
    assert_eq!(
        host.events().await,
        [
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit",
            "exec-added",
            "exec-started",
            "exec-added",
            "exit",
            "exit",
            "delete"
        ]
    );
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_and_resume_are_seen_in_the_state() {
    let host = Host::new("freeze");
    host.tasks.create(host.create("freeze", &["run"])).await.unwrap();
    host.tasks.start(process("freeze", "")).await.unwrap();
    host.tasks.pause("freeze").await.unwrap();
    assert_eq!(host.tasks.state(process("freeze", "")).await.unwrap().status, Status::Paused);
    assert_eq!(host.tasks.pause("freeze").await.unwrap_err().kind(), Kind::FailedPrecondition);
    host.tasks.resume("freeze").await.unwrap();
    assert_eq!(host.tasks.state(process("freeze", "")).await.unwrap().status, Status::Running);
    let deleted = host.tasks.delete(process("freeze", "")).await;
    assert_eq!(deleted.unwrap_err().kind(), Kind::FailedPrecondition);
    host.tasks.kill(process("freeze", ""), 9, false).await.unwrap();
    host.ended("freeze", "").await;
    host.tasks.delete(process("freeze", "")).await.unwrap();
    assert_eq!(host.events().await, ["create", "start", "paused", "resumed", "exit", "delete"]);
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_container_can_be_killed_and_deleted() {
    let host = Host::new("never");
    host.tasks.create(host.create("never", &["run"])).await.unwrap();
    host.tasks.kill(process("never", ""), 9, false).await.unwrap();
    assert_eq!(host.ended("never", "").await.status, 137);
    assert_eq!(host.tasks.kill(process("never", ""), 9, false).await.unwrap_err().kind(), Kind::NotFound);
    host.tasks.delete(process("never", "")).await.unwrap();
    assert_eq!(host.tasks.delete(process("never", "")).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(host.events().await, ["create", "exit", "delete"]);
    assert_eq!(host.vmm.log(), <Vec<String>>::new(), "no VM is needed for a container that never starts");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_not_found_and_connect_answers_all_the_same() {
    let host = Host::new("unknown");
    assert_eq!(host.tasks.state(process("x", "")).await.unwrap_err().kind(), Kind::NotFound);
    let connected = host.tasks.connect("x").await.unwrap();
    assert_eq!((connected.shim, connected.task), (std::process::id(), 0));
    host.tasks.create(host.create("unknown", &["run"])).await.unwrap();
    assert_eq!(host.tasks.wait(process("unknown", "e")).await.unwrap_err().kind(), Kind::NotFound);
    let twice = host.tasks.create(host.create("unknown", &["run"])).await.unwrap_err();
    assert_eq!(twice.kind(), Kind::AlreadyExists);
    host.tasks.delete(process("unknown", "")).await.unwrap();
    host.assert_clean().await;
}
