//! The counts that the images `counter` and `web` print, read from their logs. Called by the demo and the end-to-end
//! tests.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cri::{Container, Pod, read_logs};

/// How long a container may take to print its next count (it does so five times a second).
const COUNT_DEADLINE: Duration = Duration::from_secs(20);

/// What a container counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// In a shell variable.
    pub memory: u64,
    /// In `/count` on the root filesystem.
    pub file: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "memory={} file={}", self.memory, self.file)
    }
}

/// The content of `/count`, with a count in memory known otherwise.
pub fn count(file: &str, memory: u64) -> Result<Count> {
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
pub fn last_count(pod: &Pod, container: &Container) -> Result<Count> {
    let counts = counts(pod, container)?;
    counts.last().copied().with_context(|| format!("The container {} has printed nothing", container.name))
}

/// The first count in a container's log.
pub fn first_count(pod: &Pod, container: &Container, limit: Duration) -> Result<Count> {
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
pub fn wait_for_count(pod: &Pod, container: &Container, memory: u64) -> Result<Count> {
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
