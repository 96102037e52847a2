//! What goes wrong: each verb refused, cut off, hung, and the VMM's death before and after each. Each time the error
//! names the verb and the host is as before.

use std::time::{Duration, Instant};

use shim::task::{Status, Tasks};
use shim::testing::cloud_hypervisor::{Fault, When};

use crate::block_on;
use crate::host::process;
use crate::life::restored;
use crate::vmm::{end, fail, host, running};

/// Faults that show at once.
const FAULTS: [Fault; 3] = [Fault::Refuse, Fault::Half, Fault::Die(When::Before)];

/// The error names the verb, and says what the VMM did.
fn assert_told(text: &str, verb: &str, fault: Fault) {
    // A VMM that is killed or ends while it is asked ends during the verb, or during what was under way with it.
    let words = match fault {
        Fault::Refuse => format!("refused {verb} with status 500: Error from API: scripted refusal"),
        Fault::Half => format!("Could not ask Cloud Hypervisor for {verb}"),
        _ => "with exit status 101: stderr: scripted death".to_owned(),
    };
    assert!(text.contains(&words), "{verb} {fault:?}: {text}");
}

pub(crate) fn boot() {
    block_on(async {
        let verbs = ["vmm.ping", "vm.create", "vm.boot"];
        let all = verbs.iter().flat_map(|verb| FAULTS.map(|fault| (*verb, fault)));
        let after = verbs.map(|verb| (verb, Fault::Die(When::After)));
        for (verb, fault) in all.chain(after) {
            let host = host("boots", Some((verb, fault)));
            host.tasks.create(host.create("boots", &["run"])).await.unwrap();
            let error = host.tasks.start(process("boots", "")).await.unwrap_err();
            assert_told(&error.chain(), verb, fault);
            host.tasks.delete(process("boots", "")).await.unwrap();
            assert!(host.tasks.shutdown().await.unwrap());
            host.assert_clean().await;
        }
    });
}

pub(crate) fn checkpoint() {
    block_on(async {
        for verb in ["vm.info", "vm.pause", "vm.snapshot", "vm.resume"] {
            for fault in [Fault::Refuse, Fault::Half, Fault::Die(When::Before), Fault::Die(When::After)] {
                let host = host("saves", Some((verb, fault)));
                host.tasks.create(host.create("saves", &["run"])).await.unwrap();
                host.tasks.start(process("saves", "")).await.unwrap();
                let snapshot = host.dir.path().join("snapshot");
                std::fs::create_dir(&snapshot).unwrap();
                let result = host.tasks.checkpoint("saves", snapshot.clone(), false).await;
                // Whoever dies right after the last verb has done all that was asked of him by the VMM.
                if let Err(error) = result {
                    let text = error.chain();
                    if fault != Fault::Die(When::After) {
                        assert_told(&text, verb, fault);
                    }
                    assert_eq!(std::fs::read_dir(&snapshot).unwrap().count(), 0, "{verb} {fault:?}: {text}");
                } else {
                    assert_eq!((verb, fault), ("vm.resume", Fault::Die(When::After)));
                }
                // A guest that could not be resumed must not stay paused, nor one of which that can't be known.
                if matches!(fault, Fault::Die(_)) || ["vm.resume", "vm.info"].contains(&verb) {
                    assert_eq!(host.ended("saves", "").await.status, 137, "{verb} {fault:?}");
                } else {
                    let state = host.tasks.state(process("saves", "")).await.unwrap();
                    assert_eq!(state.status, Status::Running, "{verb} {fault:?}");
                }
                end(&host).await;
            }
        }
    });
}

pub(crate) fn restore() {
    block_on(async {
        let source = running("from").await;
        let snapshot = source.dir.path().join("snapshot");
        source.tasks.checkpoint("from", snapshot.clone(), true).await.unwrap();
        end(&source).await;
        for verb in ["vmm.ping", "vm.restore", "vm.info", "vm.resume"] {
            for fault in FAULTS {
                let host = restored("to", &snapshot, Some((verb, fault))).await;
                let error = host.tasks.start(process("to", "")).await.unwrap_err();
                assert_told(&error.chain(), verb, fault);
                host.tasks.delete(process("to", "")).await.unwrap();
                host.assert_clean().await;
            }
        }
    });
}

pub(crate) fn hang() {
    block_on(async {
        let host = host("hangs", Some(("vm.pause", Fault::Hang)));
        host.tasks.create(host.create("hangs", &["run"])).await.unwrap();
        host.tasks.start(process("hangs", "")).await.unwrap();
        let snapshot = host.dir.path().join("snapshot");
        let began = Instant::now();
        let error = host.tasks.checkpoint("hangs", snapshot.clone(), false).await.unwrap_err();
        assert!(error.chain().contains("did not answer vm.pause within 10s"), "{}", error.chain());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert!(!snapshot.exists(), "it was made for this and is gone");
        end(&host).await;
    });
}

pub(crate) fn death() {
    block_on(async {
        for fault in [Fault::Die(When::After), Fault::Reboot] {
            // vm.info is asked first when something is to be paused, here by nobody but this test.
            let host = host("dies", Some(("vm.info", fault)));
            host.tasks.create(host.create("dies", &["run"])).await.unwrap();
            host.tasks.start(process("dies", "")).await.unwrap();
            let began = Instant::now();
            let snapshot = host.dir.path().join("snapshot");
            let _ = host.tasks.checkpoint("dies", snapshot, false).await;
            assert_eq!(host.ended("dies", "").await.status, 137);
            assert!(began.elapsed() < Duration::from_secs(5), "{fault:?} took {:?}", began.elapsed());
            fail(&host, None);
            end(&host).await;
        }
    });
}
