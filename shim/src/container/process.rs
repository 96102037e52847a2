//! One process as the host sees it: its life, the stub that is its pid, its streams, and who waits for its exit. A
//! container has one of its own and one for each exec. Called by `container`'s operations only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use oci_spec::runtime::Process as OciProcess;
use tokio::sync::watch;

use super::life::{Ask, Life};
use crate::error::{Error, Kind, Result};
use crate::ledger::Ledger;
use crate::stdio::{Label, Stdio};
use crate::stub::{Place, Stub};
use crate::task::{Exit, State, Streams};

/// Status of a process that was killed, by us or with its VM: 128 + SIGKILL.
pub(crate) const KILLED: u32 = 137;

/// Longest wait for the last output of an ended process, as containerd's own shim waits.
const DRAIN: Duration = Duration::from_secs(10);

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    /// Exec id; empty for the container's first process.
    pub(crate) exec: String,
    /// Where its streams go on the host.
    pub(crate) streams: Streams,
    /// Held by whoever moves the process from one state to the next, so that its events come in order.
    pub(crate) gate: tokio::sync::Mutex<()>,
    container: String,
    what: String,
    life: Mutex<Life>,
    exit: watch::Sender<Option<Exit>>,
    plan: Option<OciProcess>,
    stub: Mutex<Option<Arc<Stub>>>,
    stdio: Mutex<Option<Arc<Stdio>>>,
}

impl Process {
    /// A created process of `container`, without a stub and with its streams closed.
    pub(crate) fn new(container: &str, exec: &str, streams: Streams) -> Self {
        let what = match exec {
            "" => format!("container {container}"),
            exec => format!("process {exec} of container {container}"),
        };
        Process {
            exec: exec.into(),
            streams,
            gate: tokio::sync::Mutex::default(),
            container: container.into(),
            what,
            life: Mutex::new(Life::Created),
            exit: watch::Sender::new(None),
            plan: None,
            stub: Mutex::default(),
            stdio: Mutex::default(),
        }
    }

    /// A process that its start will have the guest run.
    pub(crate) fn planned(container: &str, exec: &str, streams: Streams, plan: OciProcess) -> Self {
        Process { plan: Some(plan), ..Self::new(container, exec, streams) }
    }

    /// What an exec is to run.
    pub(crate) fn plan(&self) -> Option<&OciProcess> {
        self.plan.as_ref()
    }

    /// What error texts call it.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Where it is in its life.
    pub(crate) fn life(&self) -> Life {
        *lock(&self.life)
    }

    /// Refuses what is not legal now.
    pub(crate) fn allow(&self, ask: Ask) -> Result<()> {
        self.life().allow(ask, &self.what)
    }

    /// Takes the process from `from` to `to`; answers whether it was in `from`.
    pub(crate) fn turn(&self, from: Life, to: Life) -> bool {
        let mut life = lock(&self.life);
        let found = *life == from;
        if found {
            *life = to;
        }
        found
    }

    /// Ends the process with `status`, now. Answers the exit the first time and nothing later, so that exactly one
    /// caller announces it.
    pub(crate) fn end(&self, status: u32) -> Option<Exit> {
        let exit = Exit { status, at: SystemTime::now() };
        {
            let mut life = lock(&self.life);
            if life.exit().is_some() {
                return None;
            }
            *life = Life::Stopped(exit);
        }
        Some(exit)
    }

    /// Wakes who waits for the exit; called once the exit has been announced.
    pub(crate) fn publish(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// Waits for the exit.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        ended.ok().flatten().ok_or_else(|| Error::new(Kind::NotFound, format!("No {}", self.what)))
    }

    /// Gives the process its pid on the host.
    pub(crate) async fn embody(&self, place: &Place, ledger: &Arc<Ledger>) -> Result<u32> {
        let stub = Stub::spawn(place, ledger).await?;
        let pid = stub.pid();
        *lock(&self.stub) = Some(Arc::new(stub));
        Ok(pid)
    }

    /// Its pid on the host; 0 before it has one.
    pub(crate) fn pid(&self) -> u32 {
        lock(&self.stub).as_ref().map_or(0, |stub| stub.pid())
    }

    /// Ends the stub: the pid is gone from now on.
    pub(crate) async fn disembody(&self) -> Result<()> {
        // The stub stays where it is: its number is still asked for after its end.
        let stub = lock(&self.stub).clone();
        match stub {
            Some(stub) => stub.end().await,
            None => Ok(()),
        }
    }

    /// Waits until the stub is dead, whoever ended it; for ever without one.
    pub(crate) async fn disembodied(&self) {
        let stub = lock(&self.stub).clone();
        match stub {
            Some(stub) => stub.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Opens the streams on the host.
    pub(crate) async fn open_streams(&self, namespace: &str) -> Result<()> {
        let label = Label { namespace, container: &self.container };
        let stdio = Stdio::open(&self.streams, label).await?;
        *lock(&self.stdio) = Some(Arc::new(stdio));
        Ok(())
    }

    /// The open streams, if they are.
    pub(crate) fn stdio(&self) -> Option<Arc<Stdio>> {
        lock(&self.stdio).clone()
    }

    /// Waits for the last output and closes the streams.
    pub(crate) async fn close_streams(&self) {
        let stdio = lock(&self.stdio).take();
        if let Some(stdio) = stdio
            && let Err(error) = stdio.drain(DRAIN).await
        {
            log::warn!("{}: {}", self.what, error.chain());
        }
    }

    /// Closes the streams of a process that never ran, so that nobody waits for its output.
    pub(crate) fn discard_streams(&self) {
        if let Some(stdio) = lock(&self.stdio).take() {
            stdio.close();
        }
    }

    /// What containerd asks for most.
    pub(crate) fn state(&self, id: &str, bundle: &std::path::Path) -> State {
        let life = self.life();
        State {
            id: id.into(),
            exec: self.exec.clone(),
            bundle: bundle.into(),
            pid: self.pid(),
            status: life.status(),
            streams: self.streams.clone(),
            exit: life.exit(),
        }
    }
}

/// Each change under these locks is one assignment, so a poisoned one guards sound data.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
