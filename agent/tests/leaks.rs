//! What is left after failures and after callers that go away. Counts descriptors and children of the whole process, so it has one of
//! its own and is one test.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which the lints do not know as such"
)]
#![expect(dead_code, reason = "the world is shared with the other tests, which use all of it")]

use std::collections::BTreeSet;
use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent::container::{Container, CreateSpec, Namespaces};
use tokio::time::timeout;
use world::{LONG, World, mount, outcome, shell, test};

#[path = "container/world.rs"]
mod world;

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn children() -> BTreeSet<String> {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let lists =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

async fn settle(wanted: usize) {
    let settled = async {
        while open_files() > wanted || !children().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let done = timeout(LONG / 4, settled).await;
    assert!(done.is_ok(), "{} descriptors instead of {wanted}, children {:?}", open_files(), children());
}

async fn everything_that_fails(world: &Arc<World>) {
    let mut spec = world.spec("true");
    spec.Mounts.push(mount("/mnt", "nofs", "none", &[]));
    world.refused(spec).await;
    let mut spec = world.spec("true");
    spec.Process.mut_or_insert_default().Args.clear();
    world.refused(spec).await;
    let mut spec = world.spec("true");
    spec.Mounts.retain(|mount| mount.destination != "/dev/pts");
    spec.Process.mut_or_insert_default().Terminal = true;
    assert!(world.refused(spec).await.contains("does the spec mount devpts"));

    let container = world.start("exec sleep 1000").await;
    for (program, cwd) in [("nothing", "/"), ("true", "/nowhere")] {
        let mut process = shell("");
        (process.Args[0], process.Cwd) = (program.to_owned(), cwd.to_owned());
        assert!(container.exec("x", process).await.is_err());
    }
    for number in 0..5 {
        container.exec(&format!("good{number}"), shell("echo out; echo err >&2")).await.unwrap();
        assert_eq!(outcome(&container, &format!("good{number}")).await.code, 0);
    }
    world.remove(&container).await;
}

/// Each call is dropped at a different moment: whatever it was doing is brought to an end or undone.
async fn callers_that_go_away(world: &Arc<World>) {
    for milliseconds in [0, 1, 3, 5, 10, 20] {
        let patience = Duration::from_millis(milliseconds);
        let id = format!("orphan{milliseconds}");
        let spec = world.spec("exec sleep 1000");
        let spec =
            CreateSpec { id, spec, root: world.root.path().to_owned(), namespaces: Namespaces::default() };
        if let Ok(Ok(container)) = timeout(patience, Container::create(&world.runtime, spec)).await {
            world.remove(&container).await;
        }
        let container = world.create(world.spec("exec sleep 1000")).await.unwrap();
        let _ = timeout(patience, container.start()).await;
        let started = async {
            while container.exec("probe", shell("true")).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG / 4, started).await.expect("a dropped start goes on to its end");
        let _ = timeout(patience, container.exec("x", shell("exec sleep 1000"))).await;
        world.remove(&container).await;
    }
    let groups = || fs::read_dir(world.cgroups.join("microvm")).unwrap();
    let gone = async {
        while groups().any(|entry| entry.unwrap().file_type().unwrap().is_dir()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG / 4, gone).await.expect("a container that nobody waits for is removed");
}

#[test]
fn nothing_is_left_by_failures_nor_by_callers_that_go_away() {
    test(async |world| {
        everything_that_fails(&world).await;
        settle(usize::MAX).await;
        let before = open_files();
        for _ in 0..3 {
            everything_that_fails(&world).await;
        }
        settle(before).await;
        callers_that_go_away(&world).await;
        settle(before).await;

        // Forking is safe however busy the agent's other threads are with memory.
        let stop = Arc::new(AtomicBool::new(false));
        let busy = || {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    black_box((1..100).map(|size| vec![0u8; size * 10]).collect::<Vec<_>>());
                }
            })
        };
        let threads: Vec<_> = (0..8).map(|_| busy()).collect();
        for _ in 0..5 {
            assert_eq!(world.script("exit 6").await.code, 6);
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
