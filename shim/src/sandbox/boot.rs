//! Boot: from a prepared pod to a running guest with its shares, network and sandbox: from its kernel, a snapshot or a
//! template. Top to bottom in order; on failure the VM is gone and the pod can only be deleted.

use std::sync::Arc;

use super::clone::{self, Offer};
use super::pod::{Machine, Pod, blocking};
use super::restore;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::guest::{Agent, spec};
use crate::network::{self, Forward, GuestNetwork};
use crate::phases::Phases;
use crate::vm::memory::Ram;
use crate::vm::{self, NetDevice, Placement, Vm};

/// Starts the pod's VM: from where a snapshot left it, from a template, or else from its kernel. Packets reach the guest
/// only once it has the pod's own addresses.
pub(crate) async fn boot(pod: &Arc<Pod>, phases: &mut Phases) -> Result<()> {
    let _busy = pod.busy.lock().await;
    let network = discover(pod).await?;
    let nics = plug(pod, &network).await?;
    phases.done("network");
    let machine = assemble(pod, nics, phases).await?;
    let offer = if pod.restored.is_some() { Offer::Nothing } else { clone::offer(pod, &machine).await };
    if let Offer::Template(key, template) = &offer {
        match clone::clone(pod, machine.clone(), template, &network, phases).await {
            Ok(cloned) => return pod.set_machine(cloned).map(drop),
            Err(error) => clone::fall_back(pod, &machine, key, error).await?,
        }
    }
    let nics = machine.nics.clone();
    let vm = pod.vmm.machine(machine, &pod.ledger);
    let agent = match &pod.restored {
        None => from_kernel(pod, &vm, &network, phases).await,
        Some(restored) => restore::resume(pod, &vm, restored, &network, phases).await,
    };
    pod.set_machine(come_up(pod, vm, &nics, &network, agent, phases).await?)?;
    if let Offer::Order(order) = offer {
        order.place(&pod.home.program).unwrap_or_else(|error| log::warn!("{}", error.chain()));
    }
    Ok(())
}

/// Makes everything that the VM is built of.
async fn assemble(pod: &Arc<Pod>, nics: Vec<NetDevice>, phases: &mut Phases) -> Result<vm::Machine> {
    if let Some(restored) = &pod.restored {
        restored.share(pod).await?;
        phases.done("images");
    }
    let procs = pod.cgroup.vmm_procs();
    pod.share.start(&pod.config, &procs).await?;
    phases.done("share");
    let ram = match &pod.restored {
        Some(restored) => restored.ram().to_path_buf(),
        None => {
            let (dir, size) = (pod.ledger.dir().to_path_buf(), pod.size.memory);
            let (huge, ledger) = (pod.config.huge_pages(), pod.ledger.clone());
            blocking(move || Ram::create(&dir, size, huge, &ledger)).await?.path().to_path_buf()
        }
    };
    phases.done("ram");
    Ok(vm::Machine {
        dir: pod.ledger.dir().to_path_buf(),
        kernel: pod.assets.kernel.clone(),
        initramfs: pod.assets.initramfs.clone(),
        kernel_params: kernel_params(&pod.config),
        vcpus: pod.size.vcpus,
        memory: pod.size.memory,
        ram,
        shares: pod.share.devices(),
        nics,
        placement: Placement { netns: Some(pod.netns.clone()), cgroup_procs: procs },
    })
}

/// Lets packets through to a guest that has become this pod's. One that has not, or can't be reached, is ended.
pub(super) async fn come_up(
    pod: &Pod,
    vm: Arc<dyn Vm>,
    nics: &[NetDevice],
    network: &GuestNetwork,
    agent: Result<Agent>,
    phases: &mut Phases,
) -> Result<Machine> {
    let connected = match agent {
        Ok(agent) => connect_network(pod, nics, network).await.map(|()| agent),
        failed => failed,
    };
    phases.done("connect");
    match connected {
        Ok(agent) => {
            pod.oom_score.apply(vm.pid());
            let (forward, nics) = (forward(pod, &agent).await, nics.iter().map(|nic| nic.mac.clone()));
            Ok(Machine { vm, agent, nics: nics.collect(), forward })
        }
        Err(error) => {
            let error = with_last_words(error, vm.as_ref());
            Err(error.with_cleanup(vm.stop().await.err().into_iter().collect()))
        }
    }
}

async fn connect_network(pod: &Pod, nics: &[NetDevice], network: &GuestNetwork) -> Result<()> {
    let (netns, ledger) = (pod.netns.clone(), pod.ledger.clone());
    let (network, nics) = (network.clone(), nics.to_vec());
    blocking(move || network::connect(&netns, &network, &nics, &ledger)).await
}

/// Opens the way from the namespace's loopback to the guest's. A host that can't has its pods without port-forward.
async fn forward(pod: &Pod, agent: &Agent) -> Option<Forward> {
    let (netns, agent) = (pod.netns.clone(), agent.clone());
    let started = blocking(move || Forward::start(&netns, &agent)).await;
    started.inspect_err(|error| log::warn!("The pod has no port-forward: {}", error.chain())).ok()
}

/// Kernel parameters that the config adds to the VMM's own.
pub(super) fn kernel_params(config: &Config) -> String {
    let own = config.kernel_params();
    if config.guest_debug() { format!("ignore_loglevel microvm.log=debug {own}") } else { own.to_owned() }
}

/// What the guest's network has to look like, as CNI has left the pod's namespace.
async fn discover(pod: &Pod) -> Result<GuestNetwork> {
    let netns = pod.netns.clone();
    let network = blocking(move || network::discover(&netns)).await?;
    if let Some(restored) = &pod.restored {
        same_number(restored.nics().len(), network.interfaces.len())?;
    }
    Ok(network)
}

async fn plug(pod: &Arc<Pod>, network: &GuestNetwork) -> Result<Vec<NetDevice>> {
    let (netns, network, ledger) = (pod.netns.clone(), network.clone(), pod.ledger.clone());
    let mut devices = blocking(move || network::plug(&netns, &network, &ledger)).await?;
    // The VMM must find the devices as they were; the guest takes the new addresses when it is renewed.
    let kept = pod.restored.as_ref().map(restore::Restored::nics).unwrap_or_default();
    for (device, mac) in devices.iter_mut().zip(kept) {
        device.mac.clone_from(mac);
    }
    Ok(devices)
}

fn same_number(snapshot: usize, pod: usize) -> Result<()> {
    if snapshot == pod {
        return Ok(());
    }
    let text = format!(
        "The snapshot's pod had {snapshot} network interfaces, this pod has {pod}; both must have the same number"
    );
    Err(Error::new(Kind::FailedPrecondition, text))
}

/// Boots the kernel and makes the guest this pod's sandbox.
async fn from_kernel(
    pod: &Pod,
    vm: &Arc<dyn Vm>,
    network: &GuestNetwork,
    phases: &mut Phases,
) -> Result<Agent> {
    vm.boot().await?;
    phases.done("vmm");
    let agent = connect(pod, vm.as_ref()).await?;
    agent.check().await?;
    phases.done("kernel");
    agent.create_sandbox(&spec::sandbox(&pod.home.id, &pod.hostname)).await?;
    phases.done("sandbox");
    for interface in &network.interfaces {
        agent.update_interface(interface).await?;
    }
    if !network.routes.is_empty() {
        agent.update_routes(&network.routes).await?;
    }
    if !network.neighbors.is_empty() {
        agent.update_neighbors(&network.neighbors).await?;
    }
    phases.done("addresses");
    Ok(agent)
}

/// Connects to the guest's agent.
pub(super) async fn connect(pod: &Pod, vm: &dyn Vm) -> Result<Agent> {
    let stream = vm.connect_agent(pod.config.boot_timeout()).await?;
    Agent::connect(stream, pod.config.agent_timeout()).await
}

/// Adds the end of the guest's console to the error of a guest that did not come up.
fn with_last_words(error: Error, vm: &dyn Vm) -> Error {
    let console = vm.console_tail();
    if console.trim().is_empty() {
        return error;
    }
    let kind = error.kind();
    Error::caused(
        kind,
        format!("The guest did not start; its console ended with {:?}", console.trim_end()),
        error,
    )
}
