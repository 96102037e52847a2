//! The pod behind a sandbox: everything that its containers share, from the first Create on. Holds no container.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::assets::Assets;
use super::facts::{self, Network, PodName, Role, Size};
use super::oom_score::OomScore;
use super::{Home, restore};
use crate::cgroup::PodCgroup;
use crate::config::{Config, Source};
use crate::container::Container;
use crate::error::{Context, Error, Kind, Result};
use crate::events::Sender;
use crate::guest::spec::Layout;
use crate::guest::{Agent, GuestName};
use crate::ledger::{Ledger, Owner, Shim};
use crate::network::{self, Forward};
use crate::phases::Phases;
use crate::share::Share;
use crate::stub::{Net, Place};
use crate::task::Create;
use crate::vm::{Vm, Vmm};

/// What the containers of one sandbox share.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The node's config, with what the pod's annotations change.
    pub(crate) config: Config,
    /// Where the config came from.
    pub(crate) source: Source,
    /// What the sandbox owns on the host.
    pub(crate) ledger: Arc<Ledger>,
    /// Where events go.
    pub(crate) events: Sender,
    /// containerd's side.
    pub(crate) home: Home,
    /// Host name of the guest.
    pub(crate) hostname: String,
    /// Which pod it is, in Kubernetes' words.
    pub(crate) name: PodName,
    /// Kernel parameters that all its containers have.
    pub(crate) sysctls: HashMap<String, String>,
    /// Size of the VM.
    pub(crate) size: Size,
    /// The pod's network namespace.
    pub(crate) netns: PathBuf,
    /// The pod's cgroup on the host.
    pub(crate) cgroup: PodCgroup,
    /// What the guest sees of the host.
    pub(crate) share: Share,
    /// What its VM boots.
    pub(crate) assets: Assets,
    /// What makes its VM.
    pub(crate) vmm: Arc<dyn Vmm>,
    /// The snapshot that it goes on from.
    pub(crate) restored: Option<restore::Restored>,
    /// How dispensable the VMM is.
    pub(crate) oom_score: OomScore,
    /// Held by boot, checkpoint and stop, which exclude each other.
    pub(crate) busy: tokio::sync::Mutex<()>,
    machine: OnceLock<Machine>,
    stopping: AtomicBool,
    generations: Mutex<HashMap<GuestName, u32>>,
}

/// The running VM and the way into it.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The virtual machine.
    pub(crate) vm: Arc<dyn Vm>,
    /// Its agent.
    pub(crate) agent: Agent,
    /// MAC addresses of its network devices, as they were made.
    pub(crate) nics: Vec<String>,
    /// Port-forward to its loopback; none where the host's kernel can't.
    pub(crate) forward: Option<Forward>,
}

impl Machine {
    /// Ends the VM and all that goes into it.
    ///
    /// # Errors
    /// When the VMM can't be ended.
    pub(crate) async fn stop(&self) -> Result<()> {
        if let Some(forward) = &self.forward {
            forward.stop().await;
        }
        self.vm.stop().await
    }

    /// Whether the VMM has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.vm.death().borrow().is_some()
    }
}

impl Pod {
    /// Prepares a pod for the sandbox's first container: its directory, cgroup, network namespace and share; no VM.
    /// On failure nothing is left.
    pub(crate) async fn prepare(
        home: &Home,
        events: &Sender,
        request: &Create,
        spec: &facts::Spec,
    ) -> Result<Arc<Self>> {
        let config = Config::load(&request.config, facts::annotations(spec))?;
        let dir = config.run_dir().join(&home.namespace).join(&home.id);
        let owner = Owner {
            namespace: home.namespace.clone(),
            sandbox: home.id.clone(),
            bundle: request.bundle.clone(),
            containerd_address: home.containerd_address.clone(),
            ttrpc_address: home.ttrpc_address.clone(),
            shim: Shim::current()?,
        };
        let ledger = Arc::new(Ledger::create(&dir, owner)?);
        match Self::build(home, events, request, spec, config, &ledger).await {
            Ok(pod) => Ok(Arc::new(pod)),
            Err(error) => {
                let left =
                    blocking(move || Ok(ledger.release_all())).await.unwrap_or_else(|error| vec![error]);
                Err(error.with_cleanup(left))
            }
        }
    }

    async fn build(
        home: &Home,
        events: &Sender,
        request: &Create,
        spec: &facts::Spec,
        config: Config,
        ledger: &Arc<Ledger>,
    ) -> Result<Self> {
        let mut phases = Phases::begin("create");
        let vmm = match &home.vmm {
            Some(vmm) => vmm.clone(),
            None => crate::vm::choose(&config).await?,
        };
        phases.done("vmm");
        let netns = netns(spec, ledger).await?;
        phases.done("network");
        let parent = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
        let cgroup = PodCgroup::create(&parent.to_string_lossy(), &home.id, ledger)?;
        phases.done("cgroup");
        let share = Share::prepare(ledger.dir(), ledger)?;
        phases.done("share");
        let restored = restore::take_in(home, &config, request, spec, ledger).await?;
        if restored.is_some() {
            phases.done("snapshot");
        }
        phases.finish();
        let assets = match &restored {
            Some(restored) => restored.assets().clone(),
            None => Assets::find(&config)?,
        };
        let size = restored.as_ref().map_or_else(|| facts::size(spec, &config), restore::Restored::size);
        Ok(Pod {
            hostname: spec.hostname().clone().unwrap_or_default(),
            name: facts::pod_name(spec),
            sysctls: facts::pod_sysctls(spec),
            oom_score: OomScore::of(spec),
            source: request.config.clone(),
            ledger: ledger.clone(),
            events: events.clone(),
            home: home.clone(),
            busy: tokio::sync::Mutex::default(),
            machine: OnceLock::new(),
            stopping: AtomicBool::new(false),
            generations: Mutex::default(),
            config,
            assets,
            size,
            netns,
            cgroup,
            share,
            vmm,
            restored,
        })
    }

    /// The running VM.
    ///
    /// # Errors
    /// `FailedPrecondition` before the sandbox has been started.
    pub(crate) fn machine(&self) -> Result<&Machine> {
        let text = || format!("Sandbox {} has not been started", self.home.id);
        self.machine.get().ok_or_else(|| Error::new(Kind::FailedPrecondition, text()))
    }

    /// Sets the VM, once.
    pub(super) fn set_machine(&self, machine: Machine) -> Result<&Machine> {
        let text = || format!("Sandbox {} runs already", self.home.id);
        self.machine.set(machine).map_err(|_| Error::new(Kind::FailedPrecondition, text()))?;
        self.machine()
    }

    /// Where the stub of a process in `cgroup_procs` lives.
    pub(crate) fn place(&self, cgroup_procs: Vec<PathBuf>) -> Place {
        Place { cgroup_procs, net: Net::Join(self.netns.clone()), program: self.home.program.clone() }
    }

    /// What the translation of a spec in `bundle` has to know.
    pub(crate) fn layout<'a>(&self, bundle: &'a Path) -> Layout<'a> {
        Layout::new(bundle, self.config.upper_size().of(self.size.memory))
    }

    /// Says that the pod ends because somebody asked for it.
    pub(crate) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked the pod to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// File with the guest's RAM.
    pub(crate) fn ram(&self) -> PathBuf {
        self.ledger.dir().join("ram").join("mem")
    }

    /// The next generation of a guest name: a path in the share is never used twice.
    pub(crate) fn next_generation(&self, name: &GuestName) -> u32 {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let next = generations.entry(name.clone()).or_insert_with(|| {
            self.restored.as_ref().and_then(|restored| restored.generation(name)).unwrap_or_default()
        });
        *next = next.saturating_add(1);
        *next
    }

    /// Whether the pod goes on when `container` is deleted: a sandbox ends with its own container.
    pub(crate) fn outlives(&self, container: &Container) -> bool {
        matches!(container.role, Role::Member { .. })
    }

    /// Runs what blocks off the server's threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        blocking(work).await
    }
}

/// Runs what blocks off the server's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context(|| "A worker of the shim panicked".into())?
}

/// The pod's network namespace: the named one, or a new one in the sandbox's directory.
async fn netns(spec: &facts::Spec, ledger: &Arc<Ledger>) -> Result<PathBuf> {
    match facts::network(spec)? {
        Network::Namespace(path) => Ok(path),
        Network::Own => {
            let (path, ledger) = (ledger.dir().join("netns"), ledger.clone());
            blocking(move || network::create_netns(&path, &ledger).map(|()| path)).await
        }
    }
}
