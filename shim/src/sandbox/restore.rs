//! Restore: a new pod goes on from a snapshot. Create takes the snapshot in, before containerd removes it: checked, its
//! RAM in place. Start shares the images, has the VMM load the rest, and makes the guest a machine of its own; its
//! containers stay frozen until each one's own Start, which adopts it by name and gives it the new pod's volumes.

mod adopt;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_proto::microvm::RenewRequest;

use super::Home;
use super::assets::Assets;
use super::boot;
use super::facts::{self, Role, Size};
use super::pod::{Pod, blocking};
use crate::config::Config;
use crate::container::kill::SIGKILL;
use crate::error::{Context, Error, Kind, Result};
use crate::guest::{Agent, GuestName};
use crate::images;
use crate::ledger::{Ledger, Resource};
use crate::network::GuestNetwork;
use crate::phases::Phases;
use crate::share::Image;
use crate::snapshot::Snapshot;
use crate::snapshot::manifest::{ContainerRecord, ContainerState, Contents};
use crate::snapshot::store::Store;
use crate::task::Create;
use crate::vm::Vm;
use crate::vm::memory::Ram;

/// Bytes of entropy for the guest's random generator: twice its key.
const ENTROPY: usize = 64;

/// A snapshot that was taken in: everything in it that the pod needs is in the sandbox's directory.
#[derive(Debug)]
pub(crate) struct Restored {
    contents: Contents,
    assets: Assets,
    ram: PathBuf,
    state: PathBuf,
    /// Containers that no container of the new pod has adopted yet.
    waiting: Mutex<Vec<ContainerRecord>>,
}

/// Takes in the snapshot that the sandbox is asked to go on from; none if it is not.
///
/// # Errors
/// `NotFound`, `InvalidArgument` or `FailedPrecondition` when there is no such snapshot or it can't be restored here.
pub(super) async fn take_in(
    home: &Home,
    config: &Config,
    request: &Create,
    spec: &facts::Spec,
    ledger: &Arc<Ledger>,
) -> Result<Option<Restored>> {
    let dir = match (facts::restore_from(spec), request.checkpoint.as_str()) {
        (None, "") => return Ok(None),
        (Some(name), "") => Store::new(config.snapshot_store()).resolve(name)?,
        (None, path) => PathBuf::from(path),
        (Some(name), path) => {
            let text = format!("Container {} is to be restored from both {name:?} and {path}", request.id);
            return Err(Error::new(Kind::InvalidArgument, text));
        }
    };
    let single = facts::role(spec)? == Role::Single;
    let (config, ledger, what) = (config.clone(), ledger.clone(), dir.display().to_string());
    let id = home.id.clone();
    let taken = blocking(move || take(&dir, single, &config, &ledger)).await;
    taken.context(|| format!("Could not restore sandbox {id} from {what}")).map(Some)
}

fn take(dir: &Path, single: bool, config: &Config, ledger: &Arc<Ledger>) -> Result<Restored> {
    let snapshot = Snapshot::open(dir)?;
    let contents = snapshot.manifest().contents.clone();
    fits(&contents, single, config)?;
    let assets = Assets::find_again(config, &contents.guest)?;
    let ram = Ram::create(ledger.dir(), contents.machine.memory, config.huge_pages(), ledger)?;
    snapshot.restore_ram(ram.path())?;
    let state = ledger.dir().join("restore");
    ledger.claim(Resource::Directory(state.clone()))?;
    std::fs::create_dir(&state).context(|| format!("Could not make {}", state.display()))?;
    snapshot.state_into(&state)?;
    let waiting =
        contents.containers.iter().filter(|container| !matches!(container.state, ContainerState::Stopped(_)));
    let waiting = Mutex::new(waiting.cloned().collect());
    Ok(Restored { waiting, assets, ram: ram.path().to_path_buf(), state, contents })
}

/// Refuses a snapshot that this node's config or this kind of container can't take.
fn fits(contents: &Contents, single: bool, config: &Config) -> Result<()> {
    let machine = &contents.machine;
    if machine.memory > config.max_memory() || machine.vcpus > config.max_vcpus() {
        let text = format!(
            "The snapshot needs {} bytes of RAM and {} CPUs, this node's config allows {} and {} (max_memory, max_vcpus)",
            machine.memory,
            machine.vcpus,
            config.max_memory(),
            config.max_vcpus()
        );
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    let plain = contents.containers.len() == 1 && contents.containers[0].cri_name.is_none();
    if single && !plain {
        let text = format!(
            "The snapshot holds a pod of {} containers; restore it by the annotation {} of a new pod",
            contents.containers.len(),
            facts::RESTORE_FROM
        );
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    Ok(())
}

impl Restored {
    /// What its guest booted.
    pub(super) fn assets(&self) -> &Assets {
        &self.assets
    }

    /// Size of the VM.
    pub(crate) fn size(&self) -> Size {
        Size { vcpus: self.contents.machine.vcpus, memory: self.contents.machine.memory }
    }

    /// MAC addresses of its network devices.
    pub(crate) fn nics(&self) -> &[String] {
        &self.contents.machine.nics
    }

    /// Its RAM, in place.
    pub(crate) fn ram(&self) -> &Path {
        &self.ram
    }

    /// The last generation of a guest name.
    pub(crate) fn generation(&self, name: &GuestName) -> Option<u32> {
        let named = self.contents.containers.iter().filter(|container| container.guest_name == name.as_str());
        named.map(|container| container.generation).max()
    }

    /// What a new snapshot has to carry on: containers that wait to be adopted still.
    pub(super) fn waiting(&self) -> Vec<ContainerRecord> {
        let waiting = self.unclaimed().clone();
        let carried = waiting.into_iter().map(|container| match container.state {
            ContainerState::Created => container,
            _ => ContainerRecord { state: ContainerState::Waiting, ..container },
        });
        carried.collect()
    }

    /// Shares the image of every container of the snapshot, at the same place, before the VM is restored. A plain
    /// container's image comes with its own Create.
    pub(super) async fn share(&self, pod: &Arc<Pod>) -> Result<()> {
        let members: Vec<_> =
            self.contents.containers.iter().filter(|container| container.cri_name.is_some()).collect();
        if members.is_empty() {
            return Ok(());
        }
        let client = images::Client::connect(&pod.home.containerd_address, &pod.home.namespace).await?;
        let lease = format!("microvm-{}", pod.home.id);
        pod.ledger.claim(Resource::Lease {
            address: pod.home.containerd_address.clone(),
            namespace: pod.home.namespace.clone(),
            id: lease.clone(),
        })?;
        client.create_lease(&lease).await?;
        for container in members {
            let name = GuestName::parse(&container.guest_name)?;
            let image = container.image.as_ref().ok_or_else(|| {
                Error::new(Kind::InvalidArgument, format!("The snapshot names no image of container {name}"))
            })?;
            let key = format!("{lease}-{name}@{}", container.generation);
            let mounts = client.view(image, &lease, &key).await;
            let mounts = mounts.context(|| format!("Container {name} of the snapshot"))?;
            pod.share.add_image(&name, container.generation, Image::Mounts(&mounts))?;
        }
        Ok(())
    }

    fn unclaimed(&self) -> MutexGuard<'_, Vec<ContainerRecord>> {
        // One push or removal at a time, so a poisoned lock guards sound data.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the VMM load the snapshot, lets the guest run, and makes it this pod's.
pub(super) async fn resume(
    pod: &Arc<Pod>,
    vm: &Arc<dyn Vm>,
    restored: &Restored,
    network: &GuestNetwork,
    phases: &mut Phases,
) -> Result<Agent> {
    let identity = vm.identity().await?;
    if identity != restored.contents.vmm {
        let text = format!(
            "The snapshot was made by {:?}, this node runs {:?}; both must be the same",
            restored.contents.vmm, identity
        );
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    vm.restore(&restored.state).await?;
    vm.resume().await?;
    phases.done("vmm");
    let agent = boot::connect(pod, vm.as_ref()).await?;
    phases.done("agent");
    // Its containers could not have been frozen without.
    agent.expect_extension();
    agent.renew(&renewal(pod, network, SystemTime::now())?).await?;
    phases.done("renew");
    for container in &restored.contents.containers {
        clear(&agent, container).await?;
    }
    let (ledger, state) = (pod.ledger.clone(), restored.state.clone());
    blocking(move || ledger.release(&Resource::Directory(state))).await?;
    Ok(agent)
}

/// What makes the guest a machine of its own.
pub(super) fn renewal(pod: &Pod, network: &GuestNetwork, now: SystemTime) -> Result<RenewRequest> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Ok(RenewRequest {
        entropy: entropy()?,
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: now.subsec_nanos().into(),
        hostname: pod.hostname.clone(),
        interfaces: network.interfaces.clone(),
        routes: network.routes.clone(),
        neighbors: network.neighbors.clone(),
        ..RenewRequest::default()
    })
}

fn entropy() -> Result<Vec<u8>> {
    let mut bytes = vec![0; ENTROPY];
    let mut file = std::fs::File::open("/dev/urandom").context(|| "Could not open /dev/urandom".into())?;
    std::io::Read::read_exact(&mut file, &mut bytes).context(|| "Could not read /dev/urandom".into())?;
    Ok(bytes)
}

/// Ends what nobody can adopt: processes that an exec had started, and containers that had ended.
async fn clear(agent: &Agent, container: &ContainerRecord) -> Result<()> {
    let name = GuestName::parse(&container.guest_name)?;
    let workload = name.workload_id();
    if matches!(container.state, ContainerState::Stopped(_)) {
        agent.remove_container(&workload).await?;
        return agent.remove_container(name.carrier_id()).await;
    }
    for exec in &container.execs {
        match agent.signal_process(&workload, &exec.id, SIGKILL).await {
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
