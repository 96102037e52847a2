//! The pod as the guest knows it: its namespaces, storages and containers. Called by `rpc`, which runs what changes
//! anything in tasks of their own. The state's lock is never held across a call that waits: whatever hangs, other
//! containers can be asked and killed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_proto::agent::{CreateSandboxRequest, Storage};

use crate::container::{Container, Runtime, State as Process};
use crate::error::{Error, Kind, Result};
use crate::reaper::Reaper;
use crate::storage::{ROOT, Storages, blocking};
use namespaces::Shared;

mod create;
pub mod dns;
mod freeze;
pub mod namespaces;
mod rebind;
mod remove;
mod usage;

/// The one sandbox of a guest.
#[derive(Debug)]
pub struct Sandbox {
    runtime: Arc<Runtime>,
    reaper: Arc<Reaper>,
    /// The agent's binary.
    agent: PathBuf,
    storages: Storages,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What CreateSandbox made.
    pod: Option<Pod>,
    containers: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Pod {
    namespaces: Arc<Shared>,
    /// Storages of the sandbox itself, and those that outlive the container that brought them.
    storages: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// A call works on it; the word says which.
    Busy(&'static str),
    /// The stable path of an image; no process.
    Carrier(Arc<Parts>),
    Workload(Arc<Container>, Arc<Parts>),
}

/// What a container has beside its processes.
#[derive(Debug, Default)]
struct Parts {
    /// Its storages' mount points, in the order in which they were made.
    storages: Vec<PathBuf>,
    /// Paths of the share that it uses.
    shared: Vec<PathBuf>,
    /// The tmpfs that holds what it writes.
    upper: Option<PathBuf>,
    /// Where its termination message is, in the guest.
    message: Option<PathBuf>,
}

impl Sandbox {
    /// An empty sandbox. `agent`: the agent's binary (`/proc/self/exe`).
    #[must_use]
    pub fn new(runtime: Arc<Runtime>, reaper: Arc<Reaper>, agent: PathBuf) -> Arc<Self> {
        Arc::new(Self { runtime, reaper, agent, storages: Storages::default(), state: Mutex::default() })
    }

    /// Makes the pod's namespaces and storages.
    ///
    /// # Errors
    /// `AlreadyExists` the second time; nothing is left of a failed one.
    pub async fn set_up(&self, request: CreateSandboxRequest) -> Result<()> {
        if self.state().pod.is_some() {
            return Err(Error::new(Kind::AlreadyExists, "This guest has its sandbox already"));
        }
        let (hostname, pids) = (request.hostname.clone(), request.sandbox_pidns);
        let (reaper, agent) = (self.reaper.clone(), self.agent.clone());
        let namespaces = blocking(move || Shared::make(&hostname, pids.then_some(&agent), &reaper)).await?;
        let mut storages = Vec::new();
        let made = match self.acquire(&request.storages, &mut storages).await {
            Ok(()) => dns::write(request.dns).await,
            failed => failed,
        };
        if let Err(error) = made {
            // What fails here is in the log.
            _ = self.release(&storages).await;
            namespaces.remove();
            return Err(error);
        }
        self.state().pod = Some(Pod { namespaces: Arc::new(namespaces), storages });
        Ok(())
    }

    /// Removes all containers and what [`Sandbox::set_up`] made.
    ///
    /// # Errors
    /// The first step that failed; all have been tried.
    pub async fn tear_down(&self) -> Result<()> {
        let ids: Vec<String> = self.state().containers.keys().cloned().collect();
        let mut result = Ok(());
        // Workloads first: `x_ovl` sorts after its carrier `x`.
        for id in ids.iter().rev() {
            result = result.and(self.remove(id).await);
        }
        let pod = self.state().pod.take();
        if let Some(pod) = pod {
            result = result.and(self.release(&pod.storages).await);
            pod.namespaces.remove();
        }
        result
    }

    /// A container that has processes.
    ///
    /// # Errors
    /// `NotFound` for an unknown id; `FailedPrecondition` for a carrier and while it is made or removed.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        match self.state().containers.get(id) {
            Some(Entry::Workload(container, _)) => Ok(container.clone()),
            Some(Entry::Carrier(_)) => {
                let text = format!("Container {id} is a carrier: it has no process");
                Err(Error::new(Kind::FailedPrecondition, text))
            }
            Some(Entry::Busy(what)) => Err(busy(id, what)),
            None => Err(unknown(id)),
        }
    }

    /// The next container in which the kernel killed a process for want of memory. No deadline.
    pub async fn oom(&self) -> String {
        self.runtime.oom().await
    }

    /// The hostname of the pod's containers.
    ///
    /// # Errors
    /// `FailedPrecondition` before [`Sandbox::set_up`], else the kernel's.
    pub async fn set_hostname(&self, name: String) -> Result<()> {
        let namespaces = self.pod()?.namespaces;
        blocking(move || namespaces.set_hostname(&name)).await
    }

    /// The storages in use, to be remounted.
    #[must_use]
    pub fn storages(&self) -> &Storages {
        &self.storages
    }

    /// Makes storages in their order, putting each made one to `made`, whatever happens later.
    async fn acquire(&self, storages: &[Storage], made: &mut Vec<PathBuf>) -> Result<()> {
        for storage in storages {
            made.push(self.storages.acquire(storage).await?);
        }
        Ok(())
    }

    /// Releases storages, the last first. A failure is logged too, for callers that have a worse one to report.
    async fn release(&self, storages: &[PathBuf]) -> Result<()> {
        let mut result = Ok(());
        for storage in storages.iter().rev() {
            let released = self.storages.release(storage).await;
            if let Err(error) = &released {
                log::warn!("{}", error.chain());
            }
            result = result.and(released);
        }
        result
    }

    fn pod(&self) -> Result<Pod> {
        let none = || {
            Error::new(Kind::FailedPrecondition, "This guest has no sandbox yet: call CreateSandbox first")
        };
        self.state().pod.clone().ok_or_else(none)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("There is no container {id}"))
}

fn busy(id: &str, what: &str) -> Error {
    Error::new(Kind::FailedPrecondition, format!("Container {id} is being {what}"))
}

fn bundle(id: &str) -> PathBuf {
    PathBuf::from(ROOT).join(id)
}

/// Whether a process of a container may be frozen.
fn runs(container: &Container) -> bool {
    matches!(container.state(""), Ok(Process::Running))
}
