//! What the demo looks at: the pod's page and the host's processes. Called by the demo.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::cri::Pod;
use crate::programs;

/// A page by HTTP, from the test host's own network namespace.
pub(super) fn fetch(url: &str) -> Result<String> {
    programs::output(Command::new("busybox").args(["wget", "-T", "10", "-q", "-O", "-", url]))
}

/// Processes of a pod by name, with their number and memory: everything whose command line names the pod, or
/// whose cgroup lies in the pod's.
pub(super) fn processes(pod: &Pod, pod_id: &str) -> Result<Vec<String>> {
    let mut found: BTreeMap<String, (u32, u64)> = BTreeMap::new();
    let own_group = format!("/pod{}/", pod.uid);
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        // A process may end while we look.
        let Ok(command) = fs::read(folder.join("cmdline")) else { continue };
        let groups = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        if !String::from_utf8_lossy(&command).contains(pod_id) && !groups.contains(&own_group) {
            continue;
        }
        let mut words = command.split(|&byte| byte == 0).map(String::from_utf8_lossy);
        let program = words.next().unwrap_or_default();
        let mode = words.next().filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()));
        let name = program.rsplit('/').next().unwrap_or_default();
        let name = mode.map_or(name.to_owned(), |mode| format!("{name} {mode}"));
        let memory = fs::read_to_string(folder.join("smaps_rollup")).unwrap_or_default();
        let private: u64 = memory
            .lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum();
        let one = found.entry(name).or_default();
        *one = (one.0 + 1, one.1 + private);
    }
    Ok(found
        .into_iter()
        .map(|(name, (number, memory))| {
            format!("{number} × {name}, {:.1} MiB private", memory as f64 / 1024.0)
        })
        .collect())
}
