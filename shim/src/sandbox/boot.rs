//! Boot: from a prepared pod to a running guest with its shares, network and sandbox. Top to bottom in order; on
//! failure the VM is gone and the pod can only be deleted.

use std::sync::Arc;

use agent_proto::agent::CreateSandboxRequest;

use super::pod::{Machine, Pod, blocking};
use super::restore;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::guest::{Agent, spec};
use crate::network::{self, GuestNetwork};
use crate::phases::Phases;
use crate::vm::memory::Ram;
use crate::vm::{self, NetDevice, Placement, Vm};

/// Starts the pod's VM: from its kernel, or from where a snapshot left it.
pub(crate) async fn boot(pod: &Arc<Pod>, phases: &mut Phases) -> Result<()> {
    let _busy = pod.busy.lock().await;
    let (vm, nics) = assemble(pod, phases).await?;
    let machine = match &pod.restored {
        None => from_kernel(pod, &vm, phases).await,
        Some(restored) => restore::resume(pod, &vm, restored, phases).await,
    };
    match machine {
        Ok(agent) => pod.set_machine(Machine { vm, agent, nics }).map(drop),
        Err(error) => {
            let error = with_last_words(error, vm.as_ref());
            Err(error.with_cleanup(vm.stop().await.err().into_iter().collect()))
        }
    }
}

/// Makes everything that the VM is built of, and the VM itself, not running.
async fn assemble(pod: &Arc<Pod>, phases: &mut Phases) -> Result<(Arc<dyn Vm>, Vec<String>)> {
    if let Some(restored) = &pod.restored {
        restored.share(pod).await?;
        phases.done("images");
    }
    let procs = pod.cgroup.vmm_procs();
    pod.share.start(&pod.config, &procs).await?;
    phases.done("share");
    let nics = attach(pod).await?;
    phases.done("network");
    let ram = match &pod.restored {
        Some(restored) => restored.ram().to_path_buf(),
        None => {
            let (dir, size) = (pod.ledger.dir().to_path_buf(), pod.size.memory);
            let (huge, ledger) = (pod.config.huge_pages(), pod.ledger.clone());
            blocking(move || Ram::create(&dir, size, huge, &ledger)).await?.path().to_path_buf()
        }
    };
    phases.done("ram");
    let macs = nics.iter().map(|nic| nic.mac.clone()).collect();
    let machine = vm::Machine {
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
    };
    Ok((pod.vmm.machine(machine, &pod.ledger), macs))
}

/// Kernel parameters that the config adds to the VMM's own.
fn kernel_params(config: &Config) -> String {
    let own = config.kernel_params();
    if config.guest_debug() { format!("ignore_loglevel microvm.log=debug {own}") } else { own.to_owned() }
}

async fn attach(pod: &Arc<Pod>) -> Result<Vec<NetDevice>> {
    let (netns, ledger) = (pod.netns.clone(), pod.ledger.clone());
    let wanted = pod.restored.as_ref().map(|restored| restored.nics().to_vec());
    blocking(move || {
        let found = network::discover(&netns)?;
        if let Some(wanted) = &wanted {
            same_number(wanted.len(), found.interfaces.len())?;
        }
        let mut devices = network::attach(&netns, &found, &ledger)?;
        // The VMM must find the devices as they were; the guest takes the new addresses when it is renewed.
        for (device, mac) in devices.iter_mut().zip(wanted.unwrap_or_default()) {
            device.mac = mac;
        }
        Ok(devices)
    })
    .await
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
async fn from_kernel(pod: &Arc<Pod>, vm: &Arc<dyn Vm>, phases: &mut Phases) -> Result<Agent> {
    vm.boot().await?;
    phases.done("vmm");
    let agent = connect(pod, vm.as_ref()).await?;
    agent.check().await?;
    phases.done("kernel");
    let request = CreateSandboxRequest {
        hostname: pod.hostname.clone(),
        storages: spec::sandbox_storages(),
        sandbox_id: pod.home.id.clone(),
        ..CreateSandboxRequest::default()
    };
    agent.create_sandbox(&request).await?;
    phases.done("sandbox");
    let network = guest_network(pod).await?;
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

/// What the guest's network has to look like, as the pod's namespace is now.
pub(super) async fn guest_network(pod: &Pod) -> Result<GuestNetwork> {
    let netns = pod.netns.clone();
    blocking(move || network::discover(&netns)).await
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
