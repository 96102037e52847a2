//! What a container has used: its cgroup's numbers and the bytes of its writable layer.

use agent_proto::agent::CgroupStats;

use super::{Entry, Sandbox, unknown};
use crate::error::{Error, Kind, Result};
use crate::storage::{blocking, upper_usage};

/// Names among `MemoryStats.stats` that are not the kernel's.
const UPPER_BYTES: &str = "microvm.upper_bytes";
const UPPER_LIMIT: &str = "microvm.upper_limit";
/// Most that is answered of a termination message: kubelet's own limit, 4 KiB.
const MESSAGE_BYTES: usize = 4096;

impl Sandbox {
    /// The statistics of a container; `memory_stats.stats` also says how much it has written and may write.
    ///
    /// # Errors
    /// `NotFound` for an unknown id, else if its cgroup cannot be read.
    pub async fn stats(&self, id: &str) -> Result<CgroupStats> {
        let container = self.container(id)?;
        let upper = match self.state().containers.get(id) {
            Some(Entry::Workload(_, parts)) => parts.upper.clone(),
            _ => None,
        };
        blocking(move || {
            let mut stats = container.stats()?;
            if let Some(upper) = upper {
                let (bytes, limit) = upper_usage(&upper)?;
                let memory = stats.memory_stats.mut_or_insert_default();
                memory.stats.extend([(UPPER_BYTES.to_owned(), bytes), (UPPER_LIMIT.to_owned(), limit)]);
            }
            Ok(stats)
        })
        .await
    }

    /// The end of what a container has written to its termination message path.
    ///
    /// # Errors
    /// `NotFound` for an unknown id, or if it has no such path or file.
    pub async fn termination_message(&self, id: &str) -> Result<String> {
        let parts = match self.state().containers.get(id) {
            Some(Entry::Workload(_, parts) | Entry::Carrier(parts)) => parts.clone(),
            _ => return Err(unknown(id)),
        };
        let Some(path) = parts.message.clone() else {
            let text = format!("Container {id} has no termination message path");
            return Err(Error::new(Kind::NotFound, text));
        };
        blocking(move || crate::files::read_tail(&path, MESSAGE_BYTES)).await
    }
}
