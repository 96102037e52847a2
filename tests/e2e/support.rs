//! What several topics need: waiting, pods that are removed again, and the processes behind a pod. Called by the tests.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tests::cri::{Container, Pod};

use crate::harness::Bench;

/// An image with a shell and nothing that runs by itself.
pub(crate) const BUSYBOX: &str = "localhost/busybox:1";

/// A container that does nothing until it is told to end.
pub(crate) fn idle(name: &str) -> Container {
    Container::new(name, BUSYBOX).command(&[
        "sh",
        "-c",
        "trap 'exit 0' TERM; touch /ready; while true; do sleep 1000 & wait $!; done",
    ])
}

/// Runs a pod for the test and removes it again, whatever the test says.
pub(crate) fn with_pod(bench: &Bench, pod: &Pod, test: impl FnOnce(&Pod, &str) -> Result<()>) -> Result<()> {
    let id = bench.cri.run_pod(pod, &bench.handler)?;
    let result = test(pod, &id);
    let removed = bench.cri.remove_pod(&id);
    result?;
    removed
}

/// Waits until an idle container is ready to be told to end.
pub(crate) fn wait_until_ready(bench: &Bench, id: &str) -> Result<()> {
    wait_for("the container's trap", || Ok(bench.cri.exec(id, &["test", "-e", "/ready"])?.code == 0))
}

/// Asks until it is so, for twenty seconds at most.
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = Duration::from_secs(20);
    let deadline = Instant::now() + limit;
    while !is_so()? {
        if Instant::now() >= deadline {
            bail!("Waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// Processes whose command line holds all of `words`.
pub(crate) fn processes(words: &[&str]) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Ok(pid) = name.to_string_lossy().parse::<i32>() else { continue };
        // A process may end while we look.
        let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if words.iter().all(|word| command.contains(word)) {
            found.push(pid);
        }
    }
    Ok(found)
}
