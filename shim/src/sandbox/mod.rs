//! The sandbox: one pod, one VM, one shim. It answers the Task API (`tasks.rs`) by finding the container and calling
//! its operation; each operation of the whole pod has a file of its own. Called by `service`.

mod assets;
mod boot;
mod checkpoint;
mod clone;
pub(crate) mod facts;
mod oom_score;
mod pids;
pub(crate) mod pod;
mod record;
mod restore;
mod stop;
mod tasks;
pub mod template;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use facts::RESTORE_FROM;
pub use tasks::Served;

use crate::container::Container;
use crate::error::{Error, Kind, Result};
use crate::events::Sender;
use crate::vm::Vmm;
use pod::Pod;

/// Where a shim lives: what containerd told it at `start`.
#[derive(Debug, Clone)]
pub struct Home {
    /// containerd's namespace.
    pub namespace: String,
    /// The sandbox's id: that of its first container, or of the CRI pod.
    pub id: String,
    /// containerd's gRPC socket, for images.
    pub containerd_address: PathBuf,
    /// containerd's ttrpc socket, for events.
    pub ttrpc_address: String,
    /// The shim's binary, which is stub and virtiofsd too: `/proc/self/exe` but in tests.
    pub program: PathBuf,
    /// What makes the VM, instead of what the config says; for tests.
    pub vmm: Option<Arc<dyn Vmm>>,
}

/// One pod and its containers.
#[derive(Debug)]
pub struct Sandbox {
    home: Home,
    events: Sender,
    state: Mutex<State>,
    /// Held by Create while it looks for a free id, so that one id is created once.
    creating: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    pod: Option<Arc<Pod>>,
    containers: BTreeMap<String, Arc<Container>>,
}

impl Sandbox {
    /// A sandbox without a container, which holds nothing on the host.
    #[must_use]
    pub fn new(home: Home, events: Sender) -> Arc<Self> {
        Arc::new(Sandbox { home, events, state: Mutex::default(), creating: tokio::sync::Mutex::default() })
    }

    /// Ends everything that is left: containers, the VM, and what the host holds of them. Answers what failed. For a
    /// shim that has been told to end.
    pub async fn end(&self) -> Vec<Error> {
        let pod = self.state().pod.take();
        match pod {
            Some(pod) => stop::stop(self, &pod).await,
            None => Vec::new(),
        }
    }

    /// The pod, from the first Create on.
    fn pod(&self) -> Result<Arc<Pod>> {
        let text = || format!("Sandbox {} has no container", self.home.id);
        self.state().pod.clone().ok_or_else(|| Error::new(Kind::NotFound, text()))
    }

    /// The container `id` and its pod.
    fn find(&self, id: &str) -> Result<(Arc<Pod>, Arc<Container>)> {
        let state = self.state();
        match (&state.pod, state.containers.get(id)) {
            (Some(pod), Some(container)) => Ok((pod.clone(), container.clone())),
            _ => Err(Error::new(Kind::NotFound, format!("No container {id} in sandbox {}", self.home.id))),
        }
    }

    /// Every container, members before the sandbox's own.
    fn containers(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.state().containers.values().cloned().collect();
        all.sort_by_key(|container| container.id == self.home.id);
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under this lock is one insertion or removal, so a poisoned one guards sound data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
