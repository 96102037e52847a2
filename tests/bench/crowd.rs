//! Twenty pods at once. Called by `scenarios.rs`.

use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};
use tests::cri::Pod;

use crate::world::{Runtime, World, idle, milliseconds};

const PODS: usize = 20;

/// Starts twenty pods at once, then removes them. What one costs is the time for all of them on every CPU, divided by
/// their number.
pub(crate) fn run(world: &mut World, runtime: Runtime) -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    let cost = |begun| milliseconds(begun) * cpus as f64 / PODS as f64;
    let pods: Vec<Pod> = (0..PODS)
        .map(|_| {
            let name = world.name("crowd");
            Pod::new(&name, &name)
        })
        .collect();
    let begun = Instant::now();
    let started = at_once(&pods, |pod| {
        let pod_id = world.cri.run_pod(pod, runtime.handler())?;
        world.cri.run(&pod_id, pod, &idle("idle"))?;
        Ok(pod_id)
    });
    let start = cost(begun);
    let ids: Vec<String> = match started {
        Ok(ids) => ids,
        Err(error) => {
            world.cri.remove_all_pods()?;
            return Err(error);
        }
    };
    let begun = Instant::now();
    at_once(&ids, |id| world.cri.remove_pod(id))?;
    world.note("crowd-remove", runtime, cost(begun));
    world.note("crowd-start", runtime, start);
    Ok(())
}

/// Does the same with everything, each in a thread; the first error.
fn at_once<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(move || work(one))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("A thread panicked"))))
            .collect()
    })
}
