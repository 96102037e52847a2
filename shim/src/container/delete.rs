//! Delete: forgets an ended process, and with a container's first one everything that the container had, in the guest
//! and on the host. Works without a guest, and goes on after a failed step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::life::{Ask, Life};
use super::process::lock;
use super::{Container, KILLED, Process, exit};
use crate::error::{Error, Result};
use crate::ledger::Resource;
use crate::sandbox::pod::Pod;
use crate::task::{Deleted, Exit};

/// Longest wait for the guest to remove a container: containerd gives Delete 5 s after a failure.
const REMOVAL: Duration = Duration::from_secs(3);

/// Forgets an ended or never started exec.
pub(crate) async fn exec(container: &Container, process: &Process) -> Result<Deleted> {
    let _gate = process.gate.lock().await;
    process.allow(Ask::Delete)?;
    process.close_streams().await;
    process.disembody().await?;
    container.remove_exec(&process.exec);
    Ok(deleted(process))
}

/// Takes the container out of the guest and off the host. Answers what remains of it, and what could not be undone.
pub(crate) async fn container(pod: &Arc<Pod>, container: &Container) -> Result<(Deleted, Vec<Error>)> {
    let _gate = container.init.gate.lock().await;
    container.init.allow(Ask::Delete)?;
    if container.init.life() == Life::Created {
        exit::finish(pod, container, &container.init, KILLED).await;
        container.init.discard_streams();
    }
    for exec in container.execs() {
        exec.close_streams().await;
        container.remove_exec(&exec.exec);
    }
    container.init.close_streams().await;
    let mut failures: Vec<Error> = in_guest(pod, container).await.err().into_iter().collect();
    failures.extend(on_host(pod, container).await);
    Ok((deleted(&container.init), failures))
}

/// Removes workload and carrier from the guest, if it can still be asked.
async fn in_guest(pod: &Pod, container: &Container) -> Result<()> {
    let (Some(guest), Ok(machine)) = (&container.guest, pod.machine()) else { return Ok(()) };
    if !pod.outlives(container) || machine.is_dead() {
        return Ok(());
    }
    let removal = async {
        machine.agent.remove_container(&guest.name.workload_id()).await?;
        machine.agent.remove_container(guest.name.carrier_id()).await
    };
    match tokio::time::timeout(REMOVAL, removal).await {
        Ok(Err(error)) if error.kind() != crate::error::Kind::NotFound => Err(error),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(
            crate::error::Kind::DeadlineExceeded,
            format!("The guest did not remove container {} within {REMOVAL:?}", container.id),
        )),
    }
}

/// Undoes the host half of create, to the end whatever fails.
pub(crate) async fn on_host(pod: &Arc<Pod>, container: &Container) -> Vec<Error> {
    let mut failures = Vec::new();
    container.init.close_streams().await;
    failures.extend(container.init.disembody().await.err());
    if let Some(guest) = &container.guest {
        for generation in BTreeSet::from([guest.generation, guest.volumes]) {
            failures.extend(pod.share.remove(&guest.name, generation).err());
        }
    }
    let cgroup = lock(&container.cgroup).take();
    let (ledger, rootfs) = (pod.ledger.clone(), container.bundle.join("rootfs"));
    let hooks = super::hooks::poststop(&container.spec, container.about(), pod.config.hook_timeout());
    let blocking = move || {
        let mut failures = Vec::new();
        failures.extend(cgroup.and_then(|cgroup| cgroup.remove().err()));
        let claimed = ledger.resources();
        let mounted = Some(Resource::Mount(rootfs));
        let had = mounted.into_iter().chain(hooks.unwrap_or_default());
        for resource in had.filter(|resource| claimed.contains(resource)) {
            failures.extend(ledger.release(&resource).err());
        }
        Ok(failures)
    };
    match pod.blocking(blocking).await {
        Ok(more) => failures.extend(more),
        Err(error) => failures.push(error),
    }
    failures
}

fn deleted(process: &Process) -> Deleted {
    let never = Exit { status: KILLED, at: SystemTime::now() };
    Deleted { pid: process.pid(), exit: process.life().exit().unwrap_or(never) }
}
