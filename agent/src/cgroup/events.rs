//! Waits for changes of a cgroup's event files, which the kernel announces as "priority" readiness.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::error::{Context as _, Error, Kind, Result};

/// Waits until `key` of the group's `cgroup.events` is `wanted`. A group that is gone counts as so.
pub(super) async fn until(group: &Path, key: &str, wanted: bool, deadline: Duration) -> Result<()> {
    let path = group.join("cgroup.events");
    let Some(mut events) = EventFile::open(&path)? else { return Ok(()) };
    let reached = async {
        loop {
            match events.value(key)? {
                None => return Ok(()),
                Some(value) if (value != 0) == wanted => return Ok(()),
                Some(_) => events.changed().await?,
            }
        }
    };
    timeout(deadline, reached).await.unwrap_or_else(|_| {
        let text = format!("{} did not show {key} {} within {deadline:?}", path.display(), u8::from(wanted));
        Err(Error::new(Kind::DeadlineExceeded, text))
    })
}

/// Counts the processes of a group that were killed for want of memory.
#[derive(Debug)]
pub struct OomWatch {
    events: EventFile,
    seen: u64,
}

impl OomWatch {
    pub(super) fn open(group: &Path) -> Result<Option<Self>> {
        let Some(events) = EventFile::open(&group.join("memory.events"))? else { return Ok(None) };
        let seen = events.value("oom_kill")?.unwrap_or(0);
        Ok(Some(Self { events, seen }))
    }

    /// Waits for the next kill; `false` when the group is gone. No deadline; may be cancelled.
    ///
    /// # Errors
    /// If the events cannot be read.
    pub async fn next(&mut self) -> Result<bool> {
        loop {
            match self.events.value("oom_kill")? {
                None => return Ok(false),
                Some(count) if count > self.seen => {
                    self.seen = count;
                    return Ok(true);
                }
                Some(_) => self.events.changed().await?,
            }
        }
    }
}

/// A file of "key value" lines that the kernel announces changes of.
#[derive(Debug)]
struct EventFile {
    file: AsyncFd<File>,
    path: PathBuf,
}

impl EventFile {
    /// `None` if there is no such file.
    fn open(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.context(|| format!("Could not open {}", path.display()))?,
        };
        // SAFETY: a File names the same open file until it is dropped, which AsyncFd does after deregistering.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        let file = file.context(|| format!("Could not watch {}", path.display()))?;
        Ok(Some(Self { file, path: path.to_owned() }))
    }

    /// The value of `key`, `None` once the group is gone. Reading also arms the next announcement.
    fn value(&self, key: &str) -> Result<Option<u64>> {
        let mut buffer = [0; 4096];
        let count = match self.file.get_ref().read_at(&mut buffer, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            result => result.context(|| format!("Could not read {}", self.path.display()))?,
        };
        let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(Some(
            lines
                .into_iter()
                .find(|(name, _)| *name == key)
                .and_then(|(_, value)| value.parse().ok())
                .unwrap_or(0),
        ))
    }

    async fn changed(&mut self) -> Result<()> {
        let mut ready = self
            .file
            .ready(Interest::PRIORITY)
            .await
            .context(|| format!("Could not watch {}", self.path.display()))?;
        ready.clear_ready();
        Ok(())
    }
}
