//! Makes a container, and undoes what was made if a step fails.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use log::{error, warn};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::link::Job;
use super::plan::{Filter, Hook, Plan};
use super::process::{Execs, Process};
use super::spawn::Spawned;
use super::{Container, CreateSpec, DEADLINE, Phase, Runtime, too_late};
use crate::cgroup::Cgroup;
use crate::error::{Context as _, Error, Kind, Result};
use crate::stdio::Streams;

/// In a task of its own, so that a caller who goes away does not leave half a container. Such a caller will never know of a whole
/// one either: it is removed.
pub(super) async fn create(runtime: &Arc<Runtime>, spec: CreateSpec) -> Result<Arc<Container>> {
    let (answer, result) = oneshot::channel();
    let runtime = runtime.clone();
    tokio::spawn(async move {
        let made = build(runtime, spec).await;
        if let Err(Ok(orphan)) = answer.send(made)
            && let Err(error) = orphan.remove().await
        {
            error!("Could not remove container {}, which nobody waited for: {}", orphan.id(), error.chain());
        }
    });
    result.await.context(|| "The creation of a container was cut off")?
}

async fn build(runtime: Arc<Runtime>, spec: CreateSpec) -> Result<Arc<Container>> {
    let id = spec.id.clone();
    let resources = spec.spec.Linux.Resources.get_or_default().clone();
    let nodes = spec.spec.Linux.Devices.clone();
    // Compiling the filter takes a while, and no other container shall wait for it.
    let plan =
        tokio::task::spawn_blocking(move || Plan::new(&spec.id, spec.root, &spec.spec, &spec.namespaces));
    let plan = plan.await.context(|| "The check of a spec was cut off")??;
    let cgroup = runtime.cgroups.create(&id)?;
    let prepared = cgroup.limit(&resources).and_then(|()| cgroup.restrict_devices(&resources, &nodes));
    let made = match prepared {
        Ok(()) => make(&runtime, &cgroup, plan).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(parts) => Ok(Container::new(runtime, id, cgroup, parts)),
        Err(error) => {
            if let Err(second) = cgroup.remove().await {
                warn!("Could not clean up after container {id}: {}", second.chain());
            }
            Err(error)
        }
    }
}

/// The parts of a container that come from its helper.
pub(super) struct Parts {
    init: Arc<Process>,
    phase: Phase,
    filter: Option<Filter>,
    start_hooks: Duration,
}

async fn make(runtime: &Runtime, cgroup: &Cgroup, plan: Plan) -> Result<Parts> {
    let filter = plan.process.filter.clone();
    let terminal = plan.process.terminal.is_some();
    let longest = |hooks: &[Hook]| Duration::from_secs(hooks.iter().map(|hook| hook.deadline).sum());
    let (create_hooks, start_hooks) = (longest(&plan.create_hooks), longest(&plan.start_hooks));
    let pipes = if terminal { None } else { Some(Streams::pipes()?) };
    let (pipes, ends) = pipes.unzip();
    let job = Job::Create { plan: Box::new(plan), cgroup: cgroup.path().to_owned() };
    let mut spawned = Spawned::new(runtime, &job, ends, None).await?;
    let ready = match timeout(DEADLINE + create_hooks, spawned.follow()).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(spawned.silence().await),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(too_late("The container was not set up", DEADLINE + create_hooks)),
    };
    if let Err(error) = ready {
        spawned.abandon().await;
        return Err(error);
    }
    let made = spawned.made()?;
    cgroup.remember_place_of(made.child.pid());
    let streams = match (pipes, made.terminal) {
        (Some(pipes), _) => Ok(pipes),
        (None, Some(master)) => Streams::terminal(master),
        (None, None) => Err(Error::new(Kind::Internal, "The helper sent no terminal")),
    };
    // On failure the removal of the cgroup ends the process.
    let init = Process::new(made.child, streams?);
    Ok(Parts { init, phase: Phase::Created(made.link), filter, start_hooks })
}

impl Container {
    fn new(runtime: Arc<Runtime>, id: String, cgroup: Cgroup, parts: Parts) -> Arc<Self> {
        let container = Arc::new(Self {
            id,
            runtime,
            cgroup,
            init: parts.init,
            filter: parts.filter,
            start_deadline: DEADLINE + parts.start_hooks,
            phase: Mutex::new(parts.phase),
            execs: Mutex::new(Execs::default()),
            freezing: tokio::sync::Mutex::new(()),
            paused: AtomicBool::new(false),
            alive: watch::Sender::new(()),
        });
        container.watch_oom();
        container.watch_end();
        container
    }

    /// Passes on what the kernel kills for want of memory, as long as there is a container. The kernel does not announce the end of
    /// a cgroup to those who watch its files.
    fn watch_oom(&self) {
        let mut watch = match self.cgroup.watch_oom() {
            Ok(Some(watch)) => watch,
            Ok(None) => return warn!("Container {}: no memory controller, so no OOM events", self.id),
            Err(error) => return warn!("Container {}: no OOM events: {}", self.id, error.chain()),
        };
        let (id, events, mut alive) =
            (self.id.clone(), self.runtime.oom_sender.clone(), self.alive.subscribe());
        tokio::spawn(async move {
            let pass_on = async {
                while matches!(watch.next().await, Ok(true)) {
                    // Fails only when the whole agent ends.
                    let _ = events.send(id.clone());
                }
            };
            tokio::select! {
                () = pass_on => {}
                // Nothing is ever sent: this is the container's end.
                _ = alive.changed() => {}
            }
        });
    }

    /// With the first process all others end, also where the pid namespace is the sandbox's and the kernel does not see to it.
    fn watch_end(self: &Arc<Self>) {
        let (init, container) = (self.init.clone(), Arc::downgrade(self));
        tokio::spawn(async move {
            init.child.wait().await;
            if let Some(container) = container.upgrade()
                && let Err(error) = container.cgroup.kill()
            {
                error!("Could not end the processes of container {}: {}", container.id, error.chain());
            }
        });
    }
}
