//! Events of the pod's tasks on their way to containerd: one queue, first in first out, and one task that empties it.
//! Called by `sandbox`, which decides the order; nothing here reorders, and an event that does not get through holds
//! back the ones behind it until it is given up.

mod recorder;
mod sink;
mod wire;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

pub use recorder::{Recorder, recorder};
pub use sink::{Rejection, Sink, containerd};

use crate::error::{Error, Kind, Result};
use crate::task::{Exit, Mount, Streams};

/// Events that may wait while containerd is away; a busy pod makes some ten a minute.
const QUEUE: usize = 4096;
/// Waits between the tries for one event; after the last the event is dropped. Together longer than containerd takes
/// to restart.
const RETRIES: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1_500),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

/// What happened to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container was created.
    Created {
        /// Container.
        id: String,
        /// Its bundle.
        bundle: String,
        /// Mounts of its root filesystem.
        rootfs: Vec<Mount>,
        /// Its standard streams.
        streams: Streams,
        /// Snapshot it was restored from, or empty.
        checkpoint: String,
        /// Host process that stands for it.
        pid: u32,
    },
    /// A container's first process was started.
    Started {
        /// Container.
        id: String,
        /// Host process that stands for it.
        pid: u32,
    },
    /// A process ended. The last event of a container before [`Event::Deleted`] is its first process's.
    Exited {
        /// Container.
        id: String,
        /// Exec id; empty for the container's first process.
        exec: String,
        /// Host process that stood for it.
        pid: u32,
        /// How and when.
        exit: Exit,
    },
    /// A container was deleted. Deleting an exec makes no event.
    Deleted {
        /// Container.
        id: String,
        /// Host process that stood for it.
        pid: u32,
        /// How and when its first process had ended.
        exit: Exit,
    },
    /// Another process of a container was registered.
    ExecAdded {
        /// Container.
        id: String,
        /// Exec id.
        exec: String,
    },
    /// Another process of a container was started.
    ExecStarted {
        /// Container.
        id: String,
        /// Exec id.
        exec: String,
        /// Host process that stands for it.
        pid: u32,
    },
    /// The kernel killed a process for the container's memory limit.
    OutOfMemory {
        /// Container.
        id: String,
    },
    /// A container was frozen.
    Paused {
        /// Container.
        id: String,
    },
    /// A container was thawed.
    Resumed {
        /// Container.
        id: String,
    },
    /// A container was checkpointed.
    Checkpointed {
        /// Container.
        id: String,
        /// Directory of the snapshot.
        checkpoint: String,
    },
}

/// Puts events into the queue. Cloning it makes another handle to the same queue.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Message>);

#[derive(Debug)]
enum Message {
    Event(SystemTime, Box<Event>),
    Flush(oneshot::Sender<()>),
}

impl Sender {
    /// Starts the task that empties the queue into `sink`, until the last sender is dropped.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn start(namespace: impl Into<String>, sink: impl Sink) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(queue, namespace.into(), Arc::new(sink)));
        Sender(sender)
    }

    /// Queues `event` behind all earlier ones; its time is now. Never blocks and never fails: an event that finds
    /// the queue full is dropped, which the log tells.
    pub fn send(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(Message::Event(_, event))) =
            self.0.try_send(Message::Event(SystemTime::now(), Box::new(event)))
        {
            log::error!("Dropped an event, {QUEUE} others wait for containerd already: {event:?}");
        }
    }

    /// Waits until everything queued so far is sent or given up.
    ///
    /// # Errors
    /// `DeadlineExceeded` after `limit`.
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        let (done, reached) = oneshot::channel();
        let flushed = async {
            // Failing means that the sending task is gone, and so is the runtime.
            let _ = self.0.send(Message::Flush(done)).await;
            let _ = reached.await;
        };
        timeout(limit, flushed).await.map_err(|_| {
            let text = format!("Events still wait for containerd after {} s", limit.as_secs_f32());
            Error::new(Kind::DeadlineExceeded, text)
        })
    }
}

async fn run(mut queue: mpsc::Receiver<Message>, namespace: String, sink: Arc<dyn Sink>) {
    while let Some(message) = queue.recv().await {
        match message {
            Message::Event(time, event) => deliver(&namespace, time, &event, sink.as_ref()).await,
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

/// Tries until the event is through, refused, or [`RETRIES`] is used up.
async fn deliver(namespace: &str, time: SystemTime, event: &Event, sink: &dyn Sink) {
    let envelope = match wire::envelope(namespace, time, event) {
        Ok(envelope) => envelope,
        Err(error) => return log::error!("Dropped event {event:?}: {error}"),
    };
    let mut waits = RETRIES.iter();
    loop {
        match (sink.forward(&envelope).await, waits.next()) {
            (Ok(()), _) => return,
            (Err(Rejection::Unreachable(error)), Some(wait)) => {
                log::debug!("Could not send an event, trying again in {wait:?}: {}", error.chain());
                sleep(*wait).await;
            }
            (Err(Rejection::Unreachable(error) | Rejection::Refused(error)), _) => {
                return log::error!("Dropped event {event:?}: {}", error.chain());
            }
        }
    }
}

#[cfg(test)]
mod tests;
