//! Standard streams of one process, between the guest and what containerd named for them: fifos, files, or a logging
//! program. Called by `container`. Each stream is copied by a task of its own with at most 32 KiB on the way, so
//! a reader that does not read holds up its own stream and nothing else.

mod copy;
mod logger;
mod remote;
mod sink;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::libc;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

pub use remote::{Output, Remote};

use crate::error::{Context, Error, Kind, Result};
use crate::guest::Agent;
use crate::task::Streams;
use sink::Sink;

/// Whose streams they are; a logging program is told.
#[derive(Debug, Clone, Copy)]
pub struct Label<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Container.
    pub container: &'a str,
}

/// The host's side of one process's streams.
#[derive(Debug)]
pub struct Stdio {
    state: Mutex<State>,
    /// Closed as soon as every output is at its end: the copying tasks hold the receivers.
    outputs: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Taken by [`Stdio::connect`].
    stdin: Option<pipe::Receiver>,
    /// Keeps stdin open while containerd is away or has not come yet; dropped to let it end.
    stdin_holder: Option<OwnedFd>,
    /// Taken by [`Stdio::connect`].
    outputs: Vec<(Output, Sink)>,
    /// A process without stdin and terminal reads the end of its stdin at once.
    ends_at_once: bool,
    tasks: Vec<AbortHandle>,
}

impl Stdio {
    /// Opens what `streams` names. Never waits for containerd to open its ends; a logging program is waited for.
    ///
    /// # Errors
    /// `InvalidArgument` for a URI we don't know; what could not be opened; `DeadlineExceeded` if a logging program is
    /// not ready within ten seconds.
    pub async fn open(streams: &Streams, label: Label<'_>) -> Result<Self> {
        let (stdin, stdin_holder) = open_stdin(&streams.stdin)?;
        let outputs = sink::open(streams, label).await?;
        let ends_at_once = stdin.is_none() && !streams.terminal;
        let state = State { stdin, stdin_holder, outputs, ends_at_once, tasks: Vec::new() };
        Ok(Stdio { state: Mutex::new(state), outputs: watch::Sender::default() })
    }

    /// Starts copying from and to the process `exec` (empty: the first one) of `container`, ids as the guest knows them.
    /// The process must exist in the guest; it need not run yet. Only the first call does anything.
    pub fn connect(&self, agent: &Agent, container: &str, exec: &str) {
        self.connect_to(Arc::new(remote::Process::new(agent, container, exec)));
    }

    /// As [`Stdio::connect`], for anything that has streams.
    pub fn connect_to(&self, remote: Arc<dyn Remote>) {
        let mut state = self.state();
        for (output, sink) in std::mem::take(&mut state.outputs) {
            let (remote, open) = (remote.clone(), self.outputs.subscribe());
            let task = tokio::spawn(async move {
                copy::output(remote.as_ref(), output, sink).await;
                drop(open);
            });
            state.tasks.push(task.abort_handle());
        }
        let stdin = state.stdin.take();
        if stdin.is_some() || std::mem::take(&mut state.ends_at_once) {
            let task = tokio::spawn(async move { copy::stdin(stdin, remote.as_ref()).await });
            state.tasks.push(task.abort_handle());
        }
    }

    /// Lets stdin end once containerd has closed its end too; what was written before arrives first. Idempotent.
    pub fn close_stdin(&self) {
        self.state().stdin_holder = None;
    }

    /// Waits until everything that the process wrote is with containerd, then closes. Call it once the process has
    /// ended. A process of the guest that still holds a stream open keeps it open.
    ///
    /// # Errors
    /// `DeadlineExceeded` after `limit`; closed all the same, and the rest of the output is lost.
    pub async fn drain(&self, limit: Duration) -> Result<()> {
        let drained = timeout(limit, self.outputs.closed()).await;
        self.close();
        drained.map_err(|_| {
            let text = format!("The output was not read to its end within {} s", limit.as_secs_f32());
            Error::new(Kind::DeadlineExceeded, text)
        })
    }

    /// Stops copying and closes everything at once. Idempotent.
    pub fn close(&self) {
        let mut state = self.state();
        state.tasks.drain(..).for_each(|task| task.abort());
        state.outputs.clear();
        state.stdin = None;
        state.stdin_holder = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reading end, and a writing end that keeps it from ending when containerd restarts.
fn open_stdin(path: &str) -> Result<(Option<pipe::Receiver>, Option<OwnedFd>)> {
    if path.is_empty() {
        return Ok((None, None));
    }
    let failed = || format!("Could not open stdin {path}");
    let receiver = pipe::OpenOptions::new().open_receiver(path).context(failed)?;
    // Opening for writing succeeds at once because there is a reader: the line above.
    let holder = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).context(failed)?;
    Ok((Some(receiver), Some(holder.into())))
}

#[cfg(test)]
mod tests;
