//! What dies or hangs behind a pod: the exits are told, and nothing is left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::cri::Pod;

use crate::harness::Bench;
use crate::support::{idle, processes, refused, vmm, wait_for, with_pod};

crate::harness::tests![;
    microvm only: the_vmm_dies,
    a_file_server_dies,
    the_shim_dies,
    a_task_process_dies,
    a_hung_guest_is_removed,
    a_config_that_is_malformed_is_named,
    a_guest_kernel_that_is_missing_is_named,
];

/// containerd's own file of the shim's settings.
const CONFIG: &str = "/etc/containerd/microvm.toml";

fn signal(pids: &[i32], signal: Signal) -> Result<()> {
    ensure!(!pids.is_empty(), "There is no such process");
    pids.iter().try_for_each(|&pid| kill(Pid::from_raw(pid), signal)).context("Could not send a signal")
}

/// Runs a pod, does something bad to it, and expects its container to exit with 137 within ten seconds.
fn dies(bench: &Bench, uid: &str, act: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    with_pod(bench, &Pod::new("dies", uid), |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        act(pod_id)?;
        let status = bench.cri.wait_exited(&id, Duration::from_secs(10))?;
        ensure!(status.exit_code == 137, "{status:?}");
        Ok(())
    })
}

fn the_vmm_dies(bench: &Bench) -> Result<()> {
    dies(bench, "f1", |pod_id| signal(&vmm(pod_id)?, Signal::SIGKILL))
}

fn a_file_server_dies(bench: &Bench) -> Result<()> {
    dies(bench, "f2", |_| {
        let servers = processes(&["containerd-shim-microvm-v1", "virtiofsd"])?;
        signal(&servers[..1.min(servers.len())], Signal::SIGKILL)
    })
}

fn the_shim_dies(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("dies", "f3"), |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        signal(&processes(&["containerd-shim-microvm-v1", "serve", pod_id])?, Signal::SIGKILL)?;
        let status = bench.cri.wait_exited(&id, Duration::from_secs(10))?;
        // Which of the two comes first is containerd's race: 255 is its own, for a wait that the shim broke off; 137 is
        // what `delete` says.
        ensure!([137, 255].contains(&status.exit_code), "{status:?}");
        wait_for("the VM and all that stood for the pod to be gone", || Ok(processes(&[pod_id])?.is_empty()))
    })
}

fn a_task_process_dies(bench: &Bench) -> Result<()> {
    with_pod(bench, &Pod::new("stub", "f4"), |pod, pod_id| {
        let id = bench.cri.run(pod_id, pod, &idle("one"))?;
        let (_, info) = bench.cri.status_with_info(&id)?;
        let pid = i32::try_from(info["pid"].as_i64().context("There is no pid")?)?;
        signal(&[pid], Signal::SIGKILL)?;
        let status = bench.cri.wait_exited(&id, Duration::from_secs(10))?;
        ensure!(status.exit_code == 137, "{status:?}");
        Ok(())
    })
}

fn a_hung_guest_is_removed(bench: &Bench) -> Result<()> {
    let pod = Pod::new("hung", "f5");
    let pod_id = bench.cri.run_pod(&pod, &bench.handler)?;
    let id = bench.cri.run(&pod_id, &pod, &idle("one"))?;
    signal(&vmm(&pod_id)?, Signal::SIGSTOP)?;
    let begun = Instant::now();
    bench.cri.status(&id)?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "Its state took {:?}", begun.elapsed());
    let begun = Instant::now();
    bench.cri.stop(&id, Duration::from_secs(0))?;
    let status = bench.cri.status(&id)?;
    ensure!(status.exit_code == 137, "{status:?}");
    bench.cri.remove_pod(&pod_id)?;
    ensure!(begun.elapsed() < Duration::from_secs(8), "Its removal took {:?}", begun.elapsed());
    Ok(())
}

/// Runs a pod while a file is changed or away, and expects an error with these words.
fn refused_while(
    bench: &Bench,
    file: &Path,
    change: impl FnOnce() -> Result<()>,
    words: &[&str],
) -> Result<()> {
    let kept = file.with_extension("kept-by-test");
    fs::rename(file, &kept).with_context(|| format!("Could not move {} away", file.display()))?;
    let result = change().and_then(|()| refused(bench, &Pod::new("refused", "f6"), words));
    fs::rename(&kept, file)?;
    result
}

fn a_config_that_is_malformed_is_named(bench: &Bench) -> Result<()> {
    let file = Path::new(CONFIG);
    refused_while(
        bench,
        file,
        || Ok(fs::write(file, "vmm = \"qemu\"\nmax_memry = \"1GiB\"\n")?),
        &[CONFIG, ":2:", "max_memory"],
    )
}

fn a_guest_kernel_that_is_missing_is_named(bench: &Bench) -> Result<()> {
    let share = Path::new("/usr/share/microvm");
    let kernel =
        find(share, "vmlinu").with_context(|| format!("There is no kernel below {}", share.display()))?;
    // A link leads to the newest guest's folder; the shim names what it leads to.
    let kernel = fs::canonicalize(kernel)?;
    refused_while(bench, &kernel, || Ok(()), &[&kernel.to_string_lossy()])
}

/// The first file below a folder whose name begins so.
fn find(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if entry.file_name().to_string_lossy().starts_with(name) {
            return Some(path);
        }
    }
    None
}
