//! What goes wrong: the VM, the guest, the request. Each time the host must be as before, and nobody waits for ever.

use std::time::{Duration, Instant};

use serde_json::json;
use shim::error::Kind;
use shim::task::{Status, Tasks};
use shim::testing::Fault;
use tokio::io::AsyncReadExt;

use crate::host::{Host, SOON, process};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_does_not_boot_fails_start_with_the_reason() {
    for (id, fault) in [("boot", Fault::Boot), ("agent", Fault::Agent)] {
        let host = Host::new(id);
        host.vmm.fail(fault);
        host.tasks.create(host.create(id, &["run"])).await.unwrap();
        let error = host.tasks.start(process(id, "")).await.unwrap_err();
        assert!(error.chain().contains("scripted console"), "{}", error.chain());
        assert_eq!(host.vmm.log().last().map(String::as_str), Some("stop"));
        host.tasks.delete(process(id, "")).await.unwrap();
        assert!(host.tasks.shutdown().await.unwrap());
        host.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_vmm_ends_every_task_with_137() {
    let host = Host::new("death");
    host.tasks.create(host.create_with("death", &["pause"], host.cri(None))).await.unwrap();
    host.tasks.start(process("death", "")).await.unwrap();
    host.tasks.create(host.create_with("m", &["run"], host.cri(Some("web")))).await.unwrap();
    host.tasks.start(process("m", "")).await.unwrap();
    host.vmm.kill();
    assert_eq!(host.ended("m", "").await.status, 137);
    assert_eq!(host.ended("death", "").await.status, 137);
    host.tasks.delete(process("m", "")).await.unwrap();
    host.tasks.delete(process("death", "")).await.unwrap();
    assert_eq!(
        host.events().await,
        ["create", "start", "create", "start", "exit", "exit", "delete", "delete"]
    );
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_guest_does_not_hang_state_kill_or_delete() {
    let host = Host::new("hung");
    host.tasks.create(host.create("hung", &["hang"])).await.unwrap();
    host.tasks.start(process("hung", "")).await.unwrap();
    let began = Instant::now();
    host.tasks.kill(process("hung", ""), 9, false).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "kill took {:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(host.tasks.state(process("hung", "")).await.unwrap().status, Status::Running);
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(host.ended("hung", "").await.status, 137);
    let began = Instant::now();
    host.tasks.delete(process("hung", "")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "delete took {:?}", began.elapsed());
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_pid_that_was_reported_kills_the_process() {
    let host = Host::new("pid");
    host.tasks.create(host.create("pid", &["run"])).await.unwrap();
    let pid = host.tasks.start(process("pid", "")).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(host.ended("pid", "").await.status, 137);
    assert!(host.vmm.log().iter().all(|line| line != "stop"), "the guest is well, and so its VM stays");
    host.tasks.delete(process("pid", "")).await.unwrap();
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_fails_start_and_the_rest_can_be_deleted() {
    let host = Host::new("missing");
    host.tasks.create(host.create("missing", &["missing"])).await.unwrap();
    let error = host.tasks.start(process("missing", "")).await.unwrap_err();
    assert!(error.chain().contains("executable file not found"), "{}", error.chain());
    host.tasks.delete(process("missing", "")).await.unwrap();
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_leave_nothing_and_name_what_is_wrong() {
    let host = Host::new("bad");
    let namespaces = json!({"linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}]}});
    let hook = json!({"hooks": {"createRuntime": [{"path": "/nowhere/hook"}]}});
    let limits = json!({"annotations": {"io.containerd.microvm.v1/default_vcpus": "many"}});
    let restore = json!({"annotations": {"io.containerd.microvm.v1/restore-from": "../../etc"}});
    let cases = [
        (namespaces, "hostNetwork"),
        (hook, "/nowhere/hook"),
        (limits, "default_vcpus"),
        (restore, "../../etc"),
    ];
    for (extra, named) in cases {
        let error = host.tasks.create(host.create_with("bad", &["run"], extra)).await.unwrap_err();
        assert!(error.chain().contains(named), "{}", error.chain());
        host.assert_clean().await;
    }
    let mut request = host.create("bad", &["run"]);
    std::fs::remove_file(request.bundle.join("config.json")).unwrap();
    let error = host.tasks.create(request.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    request = host.create("bad", &["run"]);
    std::fs::remove_dir_all(request.bundle.join("rootfs")).unwrap();
    let error = host.tasks.create(request).await.unwrap_err();
    assert!(error.chain().contains("rootfs"), "{}", error.chain());
    assert!(host.events().await.is_empty());
    assert!(host.tasks.shutdown().await.unwrap());
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_its_pod_is_refused() {
    let host = Host::new("orphan");
    let error = host.tasks.create(host.create_with("m", &["run"], host.cri(Some("web")))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_that_nobody_reads_hangs_neither_state_nor_kill() {
    let host = Host::new("flood");
    let fifo = host.dir.path().join("stdout");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut create = host.create("flood", &["flood"]);
    create.streams.stdout = fifo.display().to_string();
    host.tasks.create(create).await.unwrap();
    host.tasks.start(process("flood", "")).await.unwrap();
    let mut reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
    // The first bytes are there, and nobody takes them: the fifo is full soon.
    tokio::time::timeout(SOON, reader.readable()).await.unwrap().unwrap();
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(host.tasks.state(process("flood", "")).await.unwrap().status, Status::Running);
    }
    host.tasks.kill(process("flood", ""), 9, false).await.unwrap();
    assert_eq!(host.ended("flood", "").await.status, 137);
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
    // A reader that comes late gets what was written before the end, and then its end.
    let reading = tokio::spawn(async move {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).await.map(|_| text)
    });
    host.tasks.delete(process("flood", "")).await.unwrap();
    let text = tokio::time::timeout(SOON, reading).await.unwrap().unwrap().unwrap();
    assert!(text.len() >= 64 << 10 && text.iter().all(|byte| *byte == b'x'), "{} bytes", text.len());
    assert!(host.tasks.shutdown().await.unwrap());
    host.assert_clean().await;
}
