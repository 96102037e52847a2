//! Every process behind a pod dies at every stage: while it starts, while it is checkpointed, while containerd is away.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::counts::{last_count, wait_for_count};
use tests::cri::{Container, Pod, v1};

use crate::harness::Bench;
use crate::support::{idle, processes, wait_for, with_pod};

crate::harness::tests![
    containerd_restarts,
    containerd_is_killed;
    microvm only: the_vmm_dies_during_start,
    the_shim_dies_during_start,
    the_shim_dies_while_it_tries_the_host,
    file_servers_die_during_start,
    the_sandboxs_task_dies_during_start,
    every_file_server_process_is_missed,
    the_vmm_dies_during_a_checkpoint,
    a_file_server_dies_during_a_checkpoint,
    the_shim_dies_during_a_checkpoint,
];

/// Words of a command line, by which a process is found.
type Words<'a> = &'a [&'a str];

const VMM: Words<'_> = &["qemu-system"];
const SHIM: Words<'_> = &["containerd-shim-microvm-v1", "serve"];
const IMAGES: Words<'_> = &["containerd-shim-microvm-v1", "virtiofsd", "share/images"];
const VOLUMES: Words<'_> = &["containerd-shim-microvm-v1", "virtiofsd", "share/volumes"];
const STUB: Words<'_> = &["microvm-task", "stub"];

/// How long after it was first seen a process is killed: at once, while the guest boots, and when it is nearly up.
const MOMENTS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(700), Duration::from_millis(2500)];

/// Processes with these words; of VMMs those of either kind.
fn those(words: Words<'_>) -> Result<Vec<i32>> {
    let mut pids = processes(words)?;
    if words == VMM {
        pids.extend(processes(&["cloud-hypervisor", "--"])?);
    }
    Ok(pids)
}

/// Kills the processes that are there; some may have ended by themselves meanwhile.
fn slay(pids: &[i32]) -> Result<()> {
    for &pid in pids {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("Could not kill the process {pid}")),
        }
    }
    Ok(())
}

/// Whether a shim has begun with a sandbox. Before containerd has connected to a shim, it forgets one that dies without
/// calling `delete`.
fn a_sandbox_is_begun() -> bool {
    let sandboxes = fs::read_dir("/run/microvm/k8s.io").into_iter().flatten().flatten();
    sandboxes.map(|sandbox| sandbox.path().join("sandbox.json")).any(|record| record.exists())
}

/// The processes with these words, as soon as there are some.
fn first(words: Words<'_>) -> Result<Vec<i32>> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let pids = those(words)?;
        if !pids.is_empty() && (words != SHIM || a_sandbox_is_begun()) {
            return Ok(pids);
        }
        ensure!(Instant::now() < deadline, "No process {words:?} appeared");
    }
}

/// Waits until no process of any pod is left; which is, if not.
fn nothing_runs() -> Result<()> {
    let mut left = Vec::new();
    wait_for("all processes of the pod to be gone", || {
        left.clear();
        for words in [VMM, SHIM, IMAGES, VOLUMES, STUB] {
            left.extend(those(words)?.into_iter().map(|pid| format!("{words:?} {pid}")));
        }
        Ok(left.is_empty())
    })
    .with_context(|| format!("Left are {left:?}"))
}

/// containerd keeps a sandbox whose shim is gone as of unknown state, and can't remove it while `delete` runs: kubelet
/// tries again.
fn remove_as_kubelet(bench: &Bench) -> Result<()> {
    let mut failure = None;
    let removed = wait_for("the pods to be removed", || {
        failure = bench.cri.remove_all_pods().err();
        Ok(failure.is_none())
    });
    removed.with_context(|| format!("The last failure: {failure:?}"))
}

/// Starts a pod, kills a process of it at each moment, and expects an error, or a pod that is not ready any more.
fn dies_during_start(bench: &Bench, uid: &str, words: Words<'_>) -> Result<()> {
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        let pod = Pod::new("start", &format!("{uid}-{number}"));
        let (slain, started) = std::thread::scope(|scope| {
            let start = scope.spawn(|| bench.cri.run_pod(&pod, &bench.handler));
            let killed = first(words).and_then(|pids| {
                std::thread::sleep(moment);
                slay(&pids).map(|()| pids)
            });
            let started =
                start.join().map_err(|_| anyhow::anyhow!("The thread that starts the pod panicked"));
            Ok::<_, anyhow::Error>((killed?, started?))
        })?;
        match started {
            Err(error) => {
                println!("    killed {words:?} after {moment:?}: {error:#}");
                remove_as_kubelet(bench)?;
            }
            // A clone of a template that dies while it starts is replaced by a machine that boots.
            // The killed one may take a moment to be gone.
            Ok(id) if words == VMM && those(VMM)?.iter().any(|pid| !slain.contains(pid)) => {
                println!("    killed {words:?} after {moment:?}: the pod has another one");
                let result = bench.cri.run(&id, &pod, &idle("one")).map(drop);
                bench.cri.remove_pod(&id)?;
                result?;
            }
            Ok(id) => {
                println!("    killed {words:?} after {moment:?}: the pod ran");
                let result = wait_for("the pod not to be ready", || {
                    Ok(bench.cri.pod_status(&id)?.state() == v1::PodSandboxState::SandboxNotready)
                });
                bench.cri.remove_pod(&id)?;
                result.with_context(|| format!("After the death of {words:?} at {moment:?}"))?;
            }
        }
        nothing_runs()?;
    }
    Ok(())
}

fn the_vmm_dies_during_start(bench: &Bench) -> Result<()> {
    dies_during_start(bench, "d1", VMM)
}

fn the_shim_dies_during_start(bench: &Bench) -> Result<()> {
    dies_during_start(bench, "d2", SHIM)
}

/// The first pod after the host's boot tries KVM out by a machine of its own.
fn the_shim_dies_while_it_tries_the_host(bench: &Bench) -> Result<()> {
    let answers = Path::new("/run/microvm/.vmm.json");
    let kept = fs::read(answers)?;
    fs::remove_file(answers)?;
    let pod = Pod::new("start", "d12");
    let started = std::thread::scope(|scope| {
        let start = scope.spawn(|| bench.cri.run_pod(&pod, &bench.handler));
        let killed = first(VMM).and_then(|_| slay(&those(SHIM)?));
        let started = start.join().map_err(|_| anyhow::anyhow!("The thread that starts the pod panicked"));
        killed.and(started)
    })?;
    remove_as_kubelet(bench)?;
    fs::write(answers, kept)?;
    ensure!(started.is_err(), "The pod runs without a shim");
    nothing_runs()
}

fn file_servers_die_during_start(bench: &Bench) -> Result<()> {
    dies_during_start(bench, "d3", IMAGES)?;
    dies_during_start(bench, "d4", VOLUMES)
}

fn the_sandboxs_task_dies_during_start(bench: &Bench) -> Result<()> {
    dies_during_start(bench, "d5", STUB)
}

/// Each server is two processes, one of them in its own namespaces: none of the four may die unnoticed.
fn every_file_server_process_is_missed(bench: &Bench) -> Result<()> {
    for number in 0..4 {
        with_pod(bench, &Pod::new("servers", &format!("d6-{number}")), |pod, pod_id| {
            let id = bench.cri.run(pod_id, pod, &idle("one"))?;
            let servers = [those(IMAGES)?, those(VOLUMES)?].concat();
            ensure!(servers.len() == 4, "There are the servers {servers:?}");
            slay(&servers[number..=number])?;
            let status = bench.cri.wait_exited(&id, Duration::from_secs(10))?;
            ensure!(status.exit_code == 137, "After the death of server {number}: {status:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Begins a checkpoint of a pod and kills a process of it while it runs.
fn dies_during_a_checkpoint(bench: &Bench, uid: &str, words: Words<'_>, codes: &[i32]) -> Result<()> {
    let folder = Path::new("/tmp/e2e-dies");
    let result = with_pod(bench, &Pod::new("checkpoint", uid), |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        // Enough to write that the checkpoint takes its time.
        bench.cri.read(&id, &["sh", "-c", "head -c 60000000 /dev/urandom > /random"])?;
        let pids = those(words)?;
        ensure!(!pids.is_empty(), "There is no process {words:?}");
        let mut checkpoint = begin_checkpoint(pod_id, folder)?;
        wait_for("the checkpoint to write", || {
            ensure!(checkpoint.try_wait()?.is_none(), "The checkpoint ended before anything was killed");
            Ok(fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()))
        })?;
        slay(&pids)?;
        let ended = checkpoint.wait()?;
        let status = bench.cri.wait_exited(&id, Duration::from_secs(15))?;
        ensure!(codes.contains(&status.exit_code), "{status:?}");
        println!("    killed {words:?}: the checkpoint ended with {ended}");
        // Of a shim that is dead, `delete` takes the rest away, when containerd runs it.
        wait_for("a whole snapshot, or nothing of it", || {
            let left = names(folder)?;
            let whole = left.iter().any(|name| name == "manifest.json");
            Ok(whole || !ended.success() && left.is_empty())
        })?;
        Ok(())
    });
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    result
}

fn begin_checkpoint(pod_id: &str, folder: &Path) -> Result<Child> {
    Command::new("ctr")
        .args(["--namespace", "k8s.io", "tasks", "checkpoint", "--image-path"])
        .arg(folder)
        .arg(pod_id)
        .stdin(Stdio::null())
        .spawn()
        .context("Could not run ctr")
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn the_vmm_dies_during_a_checkpoint(bench: &Bench) -> Result<()> {
    dies_during_a_checkpoint(bench, "d7", VMM, &[137])
}

fn a_file_server_dies_during_a_checkpoint(bench: &Bench) -> Result<()> {
    dies_during_a_checkpoint(bench, "d8", IMAGES, &[137])
}

/// 255 is containerd's own, for a wait that the shim broke off.
fn the_shim_dies_during_a_checkpoint(bench: &Bench) -> Result<()> {
    dies_during_a_checkpoint(bench, "d9", SHIM, &[137, 255])
}

/// Ends containerd and expects the pod to go on, its log without a gap, and everything to work as before.
fn goes_on_without_containerd(bench: &Bench, uid: &str, signal: Signal) -> Result<()> {
    let cri = &bench.cri;
    with_pod(bench, &Pod::new("away", uid), |pod, pod_id| {
        let counter = Container::new("counter", "localhost/counter:1");
        let id = cri.run(pod_id, pod, &counter)?;
        let idle = cri.run(pod_id, pod, &idle("idle"))?;
        wait_for_count(pod, &counter, 3)?;
        bench.restart_containerd(signal)?;
        wait_for("the CRI", || Ok(cri.pod_status(pod_id).is_ok()))?;
        let then = last_count(pod, &counter)?;
        wait_for_count(pod, &counter, then.memory + 5)?;
        ensure!(cri.status(&id)?.state() == v1::ContainerState::ContainerRunning);
        ensure!(cri.read(&idle, &["echo", "alive"])? == "alive\n");
        cri.stop(&idle, Duration::from_secs(5))?;
        let status = cri.status(&idle)?;
        ensure!(status.exit_code == 0, "The trap said exit 0: {status:?}");
        cri.stop(&id, Duration::ZERO)?;
        let status = cri.status(&id)?;
        if status.exit_code != 137 {
            bail!("{status:?}");
        }
        Ok(())
    })
}

fn containerd_restarts(bench: &Bench) -> Result<()> {
    goes_on_without_containerd(bench, "d10", Signal::SIGTERM)
}

fn containerd_is_killed(bench: &Bench) -> Result<()> {
    goes_on_without_containerd(bench, "d11", Signal::SIGKILL)
}
