//! What a pod costs the host: the memory of the processes that stand behind it, as released.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::harness::Bench;
use crate::support::{BUSYBOX, processes, with_idle};

crate::harness::tests![; microvm only: the_processes_of_a_pod_are_small];

/// KiB of a process's own: what it would give back.
fn own_memory(pid: i32) -> Result<u64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("Could not read {file}"))?;
    let fields = ["Private_Clean:", "Private_Dirty:"].map(|name| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
        value.and_then(|value| value.trim().parse::<u64>().ok())
    });
    let [Some(clean), Some(dirty)] = fields else { anyhow::bail!("{file} has other fields: {text}") };
    Ok(clean + dirty)
}

fn the_processes_of_a_pod_are_small(bench: &Bench) -> Result<()> {
    with_idle(bench, &[], BUSYBOX, "small", || {
        let limits = [
            (["microvm-task", "stub"], 1 << 10),
            (["containerd-shim-microvm-v1", "serve"], 8 << 10),
            (["containerd-shim-microvm-v1", "virtiofsd"], 8 << 10),
        ];
        for (words, limit) in limits {
            let pids = processes(&words)?;
            ensure!(!pids.is_empty(), "There is no process {words:?}");
            for pid in pids {
                let own = own_memory(pid)?;
                println!("    {}: {own} KiB of its own", words.join(" "));
                ensure!(own <= limit, "{words:?} has {own} KiB of its own, and {limit} are promised");
            }
        }
        Ok(())
    })
}
