//! What several topics need: waiting, pods and containers that are removed again, and the processes behind them. Called
//! by the tests.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::cri::{Container, Pod};
use tests::programs;

use crate::harness::Bench;

/// An image with a shell and nothing that runs by itself.
pub(crate) const BUSYBOX: &str = "localhost/busybox:1";

/// A container that does nothing until it is told to end.
pub(crate) fn idle(name: &str) -> Container {
    Container::new(name, BUSYBOX).command(IDLE)
}

/// The command of [`idle`].
const IDLE: &[&str] =
    &["sh", "-c", "trap 'exit 0' TERM; touch /ready; while true; do sleep 1000 & wait $!; done"];

/// Runs a plain container of `ctr` that does nothing, and removes it again, whatever the test says.
pub(crate) fn with_idle<T>(
    bench: &Bench,
    flags: &[&str],
    image: &str,
    id: &str,
    test: impl FnOnce() -> Result<T>,
) -> Result<T> {
    with_plain(bench, &[flags, &[image, id], IDLE].concat(), id, test)
}

/// As [`with_idle`], with all that comes after `ctr run --detach`.
pub(crate) fn with_plain<T>(
    bench: &Bench,
    arguments: &[&str],
    id: &str,
    test: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let mut ctr = Command::new("ctr");
    ctr.args(["run", "--detach", "--runtime", bench.runtime()]).args(arguments);
    let result = programs::run(&mut ctr).and_then(|()| test());
    let removed = remove_plain(id);
    let value = result?;
    removed.map(|()| value)
}

/// Removes a plain container and its task, whether it runs or not.
pub(crate) fn remove_plain(id: &str) -> Result<()> {
    programs::run(Command::new("ctr").args(["tasks", "delete", "--force", id]))?;
    remove_container(id)
}

/// Removes a plain container that has no task any more.
pub(crate) fn remove_container(id: &str) -> Result<()> {
    programs::run(Command::new("ctr").args(["containers", "delete", id]))
}

/// What a command prints in a plain container that must end with 0.
pub(crate) fn exec(id: &str, command: &[&str]) -> Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let exec = format!("exec-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    programs::output(Command::new("ctr").args(["tasks", "exec", "--exec-id", &exec, id]).args(command))
        .with_context(|| format!("In the container {id}"))
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

/// Expects that a pod can't be run, for a reason that holds these words.
pub(crate) fn refused(bench: &Bench, pod: &Pod, words: &[&str]) -> Result<()> {
    let text = match bench.cri.run_pod(pod, &bench.handler) {
        Ok(id) => {
            bench.cri.remove_pod(&id)?;
            bail!("The pod {} runs, and should be refused", pod.name)
        }
        Err(error) => format!("{error:#}"),
    };
    if !words.iter().all(|word| text.contains(word)) {
        bail!("The error does not name {words:?}: {text}");
    }
    Ok(())
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

/// The process that runs the pod's VM, whichever program that is. It works in the sandbox's directory.
pub(crate) fn vmm(pod_id: &str) -> Result<Vec<i32>> {
    let mut found = processes(&["qemu-system"])?;
    found.extend(processes(&["cloud-hypervisor", "--api-socket"])?);
    found.retain(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.ends_with(pod_id)));
    Ok(found)
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
