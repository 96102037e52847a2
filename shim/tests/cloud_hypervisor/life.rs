//! What goes right, and what is refused before anything runs.

use serde_json::Value;
use shim::task::{Status, Tasks};
use shim::testing::cloud_hypervisor::Fault;

use crate::block_on;
use crate::host::{Host, process};
use crate::vmm::{asked, end, host, requests, running, write_script};

/// A pod that goes on from `snapshot`, created and not started.
pub(crate) async fn restored(id: &str, snapshot: &std::path::Path, fault: Option<(&str, Fault)>) -> Host {
    let host = host(id, fault);
    let mut request = host.create(id, &["run"]);
    request.checkpoint = snapshot.display().to_string();
    host.tasks.create(request).await.unwrap();
    host
}

pub(crate) fn a_pod_goes_on() {
    block_on(async {
        let first = running("goes").await;
        let [ping, create, boot] = &requests(&first)[..] else { panic!("three requests make a pod run") };
        assert_eq!((&*ping.0, &*create.0, &*boot.0), ("vmm.ping", "vm.create", "vm.boot"));
        let body: Value = serde_json::from_str(&create.1).unwrap();
        let dir = first.sandbox_dir();
        assert_eq!(body["vsock"]["socket"], dir.join("vsock.sock").to_str().unwrap());
        assert_eq!(body["memory"]["zones"][0]["file"], dir.join("ram/mem").to_str().unwrap());

        // Twice, as the first capture must leave a machine that can be captured.
        for name in ["one", "two"] {
            let snapshot = first.dir.path().join(name);
            first.tasks.checkpoint("goes", snapshot.clone(), false).await.unwrap();
            assert_eq!(first.tasks.state(process("goes", "")).await.unwrap().status, Status::Running);
            let verbs = ["vm.info", "vm.pause", "vm.info", "vm.snapshot", "vm.info", "vm.resume"];
            assert_eq!(asked(&first), verbs);
            for file in ["manifest.json", "config.json", "state.json", "ram"] {
                assert!(snapshot.join(file).exists(), "{file}");
            }
        }

        let snapshot = first.dir.path().join("two");
        let saved = std::fs::read(snapshot.join("config.json")).unwrap();
        let second = restored("on", &snapshot, None).await;
        second.tasks.start(process("on", "")).await.unwrap();
        let [_, restore, info, resume] = &requests(&second)[..] else {
            panic!("four requests restore a pod")
        };
        assert_eq!((&*restore.0, &*info.0, &*resume.0), ("vm.restore", "vm.info", "vm.resume"));
        let incoming = second.sandbox_dir().join("incoming");
        assert_eq!(restore.1, format!("{{\"source_url\":\"file://{}\"}}", incoming.display()));
        assert!(!incoming.exists(), "what was loaded is gone");
        assert_eq!(std::fs::read(snapshot.join("config.json")).unwrap(), saved, "the snapshot is as it was");

        let again = second.dir.path().join("again");
        second.tasks.checkpoint("on", again.clone(), false).await.unwrap();
        let text = std::fs::read_to_string(again.join("config.json")).unwrap();
        assert!(text.contains(second.sandbox_dir().to_str().unwrap()));
        assert!(!text.contains(first.sandbox_dir().to_str().unwrap()), "{text}");
        end(&second).await;
        end(&first).await;
    });
}

pub(crate) fn two_pods_go_on_from_one_snapshot() {
    block_on(async {
        let source = running("source").await;
        let snapshot = source.dir.path().join("snapshot");
        source.tasks.checkpoint("source", snapshot.clone(), true).await.unwrap();
        let (left, right) =
            (restored("left", &snapshot, None).await, restored("right", &snapshot, None).await);
        left.tasks.start(process("left", "")).await.unwrap();
        right.tasks.start(process("right", "")).await.unwrap();
        end(&left).await;
        end(&right).await;
        end(&source).await;
    });
}

pub(crate) fn unusable_vmms_are_told() {
    block_on(async {
        let host = host("old", None);
        write_script(host.dir.path(), "51.2.0", None);
        let create = async || {
            let created = host.tasks.create(host.create("old", &["run"])).await;
            let error = match created {
                Ok(_) => host.tasks.start(process("old", "")).await.unwrap_err(),
                Err(error) => error,
            };
            let _ = host.tasks.delete(process("old", "")).await;
            host.assert_clean().await;
            error.chain()
        };
        let text = create().await;
        assert!(text.contains("Cloud Hypervisor 51.2 is too old"), "{text}");
        std::fs::remove_file(host.dir.path().join("cloud-hypervisor")).unwrap();
        let text = create().await;
        assert!(text.contains("Cloud Hypervisor is not installed: there is no"), "{text}");
    });
}

pub(crate) fn other_machines_are_refused() {
    block_on(async {
        let source = running("shape").await;
        // A machine that has more than ours do: the snapshot is whole, and its description is still nobody's word.
        let snapshot = source.dir.path().join("snapshot");
        source.tasks.checkpoint("shape", snapshot.clone(), true).await.unwrap();
        end(&source).await;
        let target = restored("other", &snapshot, None).await;
        let state = target.sandbox_dir().join("restore/config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
        config["disks"] = serde_json::json!([{ "path": "/etc/shadow" }]);
        std::fs::write(&state, serde_json::to_vec(&config).unwrap()).unwrap();
        let error = target.tasks.start(process("other", "")).await.unwrap_err();
        assert!(error.chain().contains("disks is a device that no pod has"), "{}", error.chain());
        assert_eq!(asked(&target), Vec::<String>::new(), "the VMM was never started");
        target.tasks.delete(process("other", "")).await.unwrap();
        target.assert_clean().await;
    });
}
