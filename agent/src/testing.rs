//! What tests need that change mounts or the network: a thread in namespaces of its own, gone with it.

use std::future::Future;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` (as root) in a new mount and network namespace with an empty `/run`. Threads of its runtime are in
/// them too.
pub(crate) fn isolated<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let in_namespaces = move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("this test must be run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, test()).await.expect("the test takes too long");
        });
        // A blocked thread would keep the namespaces.
        runtime.shutdown_timeout(Duration::from_secs(5));
    };
    if let Err(panic) = std::thread::spawn(in_namespaces).join() {
        std::panic::resume_unwind(panic);
    }
}
