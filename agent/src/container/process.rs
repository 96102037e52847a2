//! One process of a container and the table of those that were exec'd.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Kind, Result};
use crate::reaper::Child;
use crate::stdio::Streams;

/// Ended processes whose streams are kept for a reader that may still come. Probes exec every few seconds for as long as a pod lives.
const MOST_ENDED: usize = 256;
/// Exit codes kept for those that wait late.
const MOST_CODES: usize = 4096;

/// A process and its streams.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) streams: Streams,
    waited: AtomicBool,
}

impl Process {
    pub(super) fn new(child: Child, streams: Streams) -> Arc<Self> {
        Arc::new(Self { child, streams, waited: AtomicBool::new(false) })
    }

    /// The exit code once it has ended.
    pub(super) async fn wait(&self) -> i32 {
        let code = self.child.wait().await.code();
        self.waited.store(true, Ordering::Release);
        code
    }

    /// Nobody will ask for anything but its exit code again.
    fn told(&self) -> bool {
        self.waited.load(Ordering::Acquire)
            && self.child.exit().is_some()
            && self.streams.stdout.ended()
            && self.streams.stderr.ended()
    }
}

/// The exec'd processes of a container.
#[derive(Debug, Default)]
pub(super) struct Execs {
    entries: HashMap<String, Entry>,
    /// In the order of their start.
    order: VecDeque<String>,
    codes: VecDeque<(String, i32)>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// Its id is taken, its helper runs.
    Starting,
    Running(Arc<Process>),
}

/// What there is under an id.
#[derive(Debug)]
pub(super) enum Found {
    Process(Arc<Process>),
    /// Ended, its streams are gone.
    Code(i32),
}

impl Execs {
    /// Takes an id, which may be that of an ended process.
    pub(super) fn reserve(&mut self, id: &str) -> Result<()> {
        let taken = match self.entries.get(id) {
            None => false,
            Some(Entry::Starting) => true,
            Some(Entry::Running(process)) => process.child.exit().is_none(),
        };
        if taken {
            return Err(Error::new(Kind::AlreadyExists, format!("A process {id:?} exists in the container")));
        }
        self.forget(id);
        self.codes.retain(|(known, _)| known != id);
        self.entries.insert(id.to_owned(), Entry::Starting);
        self.order.push_back(id.to_owned());
        self.drop_oldest_ended();
        Ok(())
    }

    pub(super) fn set(&mut self, id: &str, process: Arc<Process>) {
        self.entries.insert(id.to_owned(), Entry::Running(process));
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.entries.remove(id);
        self.order.retain(|known| known != id);
    }

    pub(super) fn find(&self, id: &str) -> Result<Found> {
        match self.entries.get(id) {
            Some(Entry::Running(process)) => Ok(Found::Process(process.clone())),
            Some(Entry::Starting) => {
                Err(Error::new(Kind::FailedPrecondition, format!("Process {id:?} is being started")))
            }
            None => match self.codes.iter().find(|(known, _)| known == id) {
                Some((_, code)) => Ok(Found::Code(*code)),
                None => {
                    Err(Error::new(Kind::NotFound, format!("There is no process {id:?} in the container")))
                }
            },
        }
    }

    /// Lets go of a process of which all has been told but the exit code.
    pub(super) fn retire(&mut self, id: &str) {
        if let Some(Entry::Running(process)) = self.entries.get(id)
            && process.told()
        {
            self.keep_code(id);
        }
    }

    fn keep_code(&mut self, id: &str) {
        if let Some(Entry::Running(process)) = self.entries.get(id)
            && let Some(status) = process.child.exit()
        {
            self.codes.push_back((id.to_owned(), status.code()));
            self.forget(id);
        }
        while self.codes.len() > MOST_CODES {
            self.codes.pop_front();
        }
    }

    fn drop_oldest_ended(&mut self) {
        let ended = |id: &&String| match self.entries.get(*id) {
            Some(Entry::Running(process)) => process.child.exit().is_some(),
            Some(Entry::Starting) | None => false,
        };
        let ids: Vec<String> = self.order.iter().filter(ended).cloned().collect();
        for id in ids.iter().take(ids.len().saturating_sub(MOST_ENDED)) {
            self.keep_code(id);
        }
    }
}
