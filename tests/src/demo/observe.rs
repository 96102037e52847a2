//! What the demo looks at: counts in logs, the pod's page, the host's processes. Called by the demo.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cri::{Container, Pod, read_logs};
use crate::programs;

/// How long a container may take to print its next count (it does so five times a second).
const COUNT_DEADLINE: Duration = Duration::from_secs(20);

/// What a container counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) memory: u64,
    pub(super) file: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "memory={} file={}", self.memory, self.file)
    }
}

/// The content of `/count`, with a count in memory known otherwise.
pub(super) fn count(file: &str, memory: u64) -> Result<Count> {
    let file = file.trim().parse().with_context(|| format!("/count holds {file:?}"))?;
    Ok(Count { memory, file })
}

/// `memory=12 file=12`
fn parse(line: &str) -> Option<Count> {
    let (memory, file) = line.split_once(' ')?;
    Some(Count {
        memory: memory.strip_prefix("memory=")?.parse().ok()?,
        file: file.strip_prefix("file=")?.parse().ok()?,
    })
}

fn counts(pod: &Pod, container: &Container) -> Result<Vec<Count>> {
    Ok(read_logs(pod, container)?.iter().filter_map(|line| parse(&line.text)).collect())
}

/// The newest count in a container's log.
pub(super) fn last_count(pod: &Pod, container: &Container) -> Result<Count> {
    let counts = counts(pod, container)?;
    counts.last().copied().with_context(|| format!("The container {} has printed nothing", container.name))
}

/// The first count in a container's log.
pub(super) fn first_count(pod: &Pod, container: &Container, limit: Duration) -> Result<Count> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(count) = counts(pod, container)?.first() {
            return Ok(*count);
        }
        if Instant::now() >= deadline {
            bail!("The container {} printed nothing within {limit:?}", container.name);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a container has counted to at least `memory`; what it printed then.
pub(super) fn wait_for_count(pod: &Pod, container: &Container, memory: u64) -> Result<Count> {
    let deadline = Instant::now() + COUNT_DEADLINE;
    loop {
        let last = counts(pod, container)?.last().copied();
        match last {
            Some(count) if count.memory >= memory => return Ok(count),
            _ if Instant::now() >= deadline => {
                let last = last.map_or("nothing".to_owned(), |count| count.to_string());
                bail!(
                    "The container {} did not count to {memory} within {COUNT_DEADLINE:?}: {last}",
                    container.name
                );
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A page by HTTP, from the test host's own network namespace.
pub(super) fn fetch(url: &str) -> Result<String> {
    programs::output(Command::new("busybox").args(["wget", "-T", "10", "-q", "-O", "-", url]))
}

/// Size of a folder's files in MiB, rounded up.
pub(super) fn megabytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes.div_ceil(1 << 20))
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
