//! Pause and resume: a container's cgroup in the guest is frozen, the VM runs on. The sandbox's own task stands for the
//! whole pod: with it every container is frozen.

use super::Container;
use super::life::{Ask, Life};
use super::process::lock;
use crate::error::Result;
use crate::events::Event;
use crate::sandbox::pod::Pod;

/// Freezes every process of the container.
pub(crate) async fn pause(pod: &Pod, container: &Container) -> Result<()> {
    let _gate = container.init.gate.lock().await;
    container.init.allow(Ask::Pause)?;
    let agent = &pod.machine()?.agent;
    match &container.guest {
        Some(guest) => agent.pause_container(&guest.name.workload_id()).await?,
        None => *lock(&container.frozen) = agent.freeze_all().await?,
    }
    if container.init.turn(Life::Running, Life::Paused) {
        pod.events.send(Event::Paused { id: container.id.clone() });
    }
    Ok(())
}

/// Thaws every process of the container.
pub(crate) async fn resume(pod: &Pod, container: &Container) -> Result<()> {
    let _gate = container.init.gate.lock().await;
    container.init.allow(Ask::Resume)?;
    let agent = &pod.machine()?.agent;
    match &container.guest {
        Some(guest) => agent.resume_container(&guest.name.workload_id()).await?,
        None => {
            let frozen = lock(&container.frozen).clone();
            agent.thaw_all(&frozen).await?;
        }
    }
    if container.init.turn(Life::Paused, Life::Running) {
        pod.events.send(Event::Resumed { id: container.id.clone() });
    }
    Ok(())
}
