//! Clone: a new pod goes on from a template, where it would have booted a kernel. Random numbers, clock, name and addresses
//! become the pod's before anything of it runs, as after a restore. Called by `boot`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::boot;
use super::pod::{Machine, Pod, blocking};
use super::restore;
use crate::error::{Context, Error, Result};
use crate::guest::Agent;
use crate::ledger::Resource;
use crate::network::GuestNetwork;
use crate::phases::Phases;
use crate::template::{Found, INTERFACE, Key, MAC, MOST_NICS, Order, Store, Template};
use crate::vm::{self, Vm};

/// What there is for a pod.
#[derive(Debug)]
pub(super) enum Offer {
    /// A template of this key.
    Template(Key, Template),
    /// None yet.
    Order(Order),
    /// None, and none shall be made.
    Nothing,
}

/// Looks for a template for a pod whose machine would be `machine`. Whatever stands in the way of one is no reason not
/// to boot.
pub(super) async fn offer(pod: &Pod, machine: &vm::Machine) -> Offer {
    let config = &pod.config;
    if config.templates() == 0 || config.guest_debug() || machine.nics.len() > MOST_NICS {
        return Offer::Nothing;
    }
    let found = async {
        let identity = pod.vmm.machine(machine.clone(), &pod.ledger).identity().await?;
        let key = Key::of(machine, &identity, vm::binary(config, &identity), &pod.home.program)?;
        let found = Store::new(config.template_store()).find(&key)?;
        Ok::<_, Error>((key, found))
    };
    match found.await {
        Ok((key, Found::Ready(template))) => Offer::Template(key, template),
        Ok((key, Found::Missing)) => Offer::Order(Order {
            config: pod.source.clone(),
            vcpus: key.vcpus,
            memory: key.memory,
            nics: key.nics,
        }),
        Ok((_, Found::Failed)) => Offer::Nothing,
        Err(error) => {
            log::warn!("Could not look for a template: {}", error.chain());
            Offer::Nothing
        }
    }
}

/// Brings `machine`, whose RAM is empty, to where `template` is, and makes it this pod's.
pub(super) async fn clone(
    pod: &Arc<Pod>,
    mut machine: vm::Machine,
    template: &Template,
    network: &GuestNetwork,
    phases: &mut Phases,
) -> Result<Machine> {
    // The VMM must find the devices as they were; the guest takes the pod's addresses from the agent.
    machine.nics.iter_mut().for_each(|nic| nic.mac = MAC.to_owned());
    let nics = machine.nics.clone();
    let devices = copy(pod, template, machine.ram.clone()).await?;
    phases.done("template");
    let vm = pod.vmm.machine(machine, &pod.ledger);
    let agent = resume(pod, vm.as_ref(), devices, network, phases).await;
    let cloned = boot::come_up(pod, vm, &nics, network, agent, phases).await?;
    let template = template.clone();
    tokio::task::spawn_blocking(move || {
        template.touch().unwrap_or_else(|error| log::warn!("{}", error.chain()));
    });
    Ok(cloned)
}

/// Makes everything as it was before [`clone`] failed with `error`, for a boot, and says once what happened: nobody
/// tries this template again.
pub(super) async fn fall_back(pod: &Pod, machine: &vm::Machine, key: &Key, error: Error) -> Result<()> {
    log::warn!("Booting the kernel, because the template could not be cloned: {}", error.chain());
    let noted = Store::new(pod.config.template_store()).refuse(key.clone(), &error.chain());
    noted.unwrap_or_else(|error| log::warn!("{}", error.chain()));
    let (ledger, devices, ram) = (pod.ledger.clone(), devices(pod), machine.ram.clone());
    blocking(move || {
        ledger.release(&Resource::Directory(devices))?;
        vm::memory::clear(&ram)
    })
    .await?;
    pod.share.stop().await?;
    pod.share.start(&pod.config, &machine.placement.cgroup_procs).await
}

fn devices(pod: &Pod) -> PathBuf {
    pod.ledger.dir().join("template")
}

async fn copy(pod: &Pod, template: &Template, ram: PathBuf) -> Result<PathBuf> {
    let (ledger, devices, template) = (pod.ledger.clone(), devices(pod), template.clone());
    blocking(move || {
        ledger.claim(Resource::Directory(devices.clone()))?;
        std::fs::create_dir(&devices).context(|| format!("Could not make {}", devices.display()))?;
        template.copy(&ram, &devices)?;
        Ok(devices)
    })
    .await
}

async fn resume(
    pod: &Pod,
    vm: &dyn Vm,
    devices: PathBuf,
    network: &GuestNetwork,
    phases: &mut Phases,
) -> Result<Agent> {
    vm.restore(&devices).await?;
    vm.resume().await?;
    phases.done("vmm");
    let agent = boot::connect(pod, vm).await?;
    phases.done("agent");
    let mut network = network.clone();
    for interface in &mut network.interfaces {
        // The agent finds it by this name, as no device has its MAC address yet, and gives it its own name and address.
        INTERFACE.clone_into(&mut interface.device);
    }
    // It was asked when the template was made.
    agent.expect_extension();
    agent.renew(&restore::renewal(pod, &network, SystemTime::now())?).await?;
    phases.done("renew");
    let ledger = pod.ledger.clone();
    blocking(move || ledger.release(&Resource::Directory(devices))).await?;
    Ok(agent)
}
