//! Templates: made, cloned, and given up when they don't work.

use shim::config::Source;
use shim::sandbox::template;
use shim::task::Tasks;
use shim::template::{Order, State, Store};
use shim::testing::Fault;

use crate::host::{Host, process};

/// Lets pods be cloned from templates.
fn allow(host: &Host) {
    let (dir, config) = (host.dir.path(), host.dir.path().join("microvm.toml"));
    std::fs::write(dir.join("vmm"), "vmm").unwrap();
    let keys =
        format!("templates = 2\nqemu_path = \"{0}/vmm\"\ntemplate_store = \"{0}/templates\"", dir.display());
    let text = std::fs::read_to_string(&config).unwrap().replace("templates = 0", &keys);
    std::fs::write(config, text).unwrap();
}

/// Makes the template of a pod without limits and without network devices.
async fn make(host: &Host) -> Store {
    allow(host);
    let config = Source::Path(host.dir.path().join("microvm.toml"));
    let order = Order { config, vcpus: 1, memory: 256 << 20, nics: 0 };
    let program = env!("CARGO_BIN_EXE_containerd-shim-microvm-v1").as_ref();
    template::make(&order, program, Some(host.vmm.clone())).await.unwrap();
    assert_eq!(host.vmm.log(), ["boot", "connect", "pause", "save", "stop"]);
    // Asked once more, it is there.
    template::make(&order, program, Some(host.vmm.clone())).await.unwrap();
    let store = Store::new(&host.dir.path().join("templates"));
    assert_eq!(store.list().unwrap().len(), 1);
    store
}

async fn run_and_delete(host: &Host) -> Vec<String> {
    host.tasks.create(host.create(&host.id, &["run"])).await.unwrap();
    host.tasks.start(process(&host.id, "")).await.unwrap();
    let log = host.vmm.guest().log();
    host.tasks.kill(process(&host.id, ""), 9, false).await.unwrap();
    assert_eq!(host.ended(&host.id, "").await.status, 137);
    host.tasks.delete(process(&host.id, "")).await.unwrap();
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_becomes_a_machine_of_its_own_before_anything_runs() {
    let host = Host::new("clone");
    make(&host).await;
    let before = host.vmm.log().len();
    let log = run_and_delete(&host).await;
    assert_eq!(host.vmm.log()[before..][..3], ["restore", "resume", "connect"]);
    assert_eq!(log[0], "renew  entropy 64", "{log:?}");
    assert!(log.iter().any(|line| line.starts_with("start ")), "{log:?}");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_does_not_load_is_given_up_and_the_pod_boots() {
    let host = Host::new("spoilt");
    let store = make(&host).await;
    host.vmm.fail(Fault::Restore);
    let before = host.vmm.log();
    let log = run_and_delete(&host).await;
    assert_eq!(log[0], "sandbox ", "it has booted");
    let asked = host.vmm.log()[before.len()..].to_vec();
    let [boots, restores] =
        ["boot", "restore"].map(|what| asked.iter().filter(|asked| *asked == what).count());
    assert_eq!((boots, restores), (1, 1), "{asked:?}");
    let [listed] = &store.list().unwrap()[..] else { panic!() };
    let State::Failed(reason) = &listed.state else { panic!("{listed:?}") };
    assert!(reason.contains("of another machine"), "{reason}");
    host.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_can_not_be_made_leaves_a_note_and_nothing_else() {
    let host = Host::new("unmade");
    allow(&host);
    host.vmm.fail(Fault::Save);
    let config = Source::Path(host.dir.path().join("microvm.toml"));
    let order = Order { config, vcpus: 1, memory: 256 << 20, nics: 0 };
    let program = env!("CARGO_BIN_EXE_containerd-shim-microvm-v1").as_ref();
    let error = template::make(&order, program, Some(host.vmm.clone())).await.unwrap_err();
    assert!(error.chain().contains("No space left"), "{}", error.chain());
    let [listed] = &Store::new(&host.dir.path().join("templates")).list().unwrap()[..] else { panic!() };
    assert!(matches!(&listed.state, State::Failed(reason) if reason.contains("No space left")), "{listed:?}");
    host.assert_clean().await;
}
