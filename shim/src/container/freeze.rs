//! Pause and resume of one container: its cgroup in the guest is frozen, the VM runs on.

use super::Container;
use super::life::{Ask, Life};
use crate::error::Result;
use crate::events::Event;
use crate::sandbox::pod::Pod;

/// Freezes every process of the container.
pub(crate) async fn pause(pod: &Pod, container: &Container) -> Result<()> {
    let _gate = container.init.gate.lock().await;
    container.init.allow(Ask::Pause)?;
    pod.machine()?.agent.pause_container(&container.in_guest()?.name.workload_id()).await?;
    if container.init.turn(Life::Running, Life::Paused) {
        pod.events.send(Event::Paused { id: container.id.clone() });
    }
    Ok(())
}

/// Thaws every process of the container.
pub(crate) async fn resume(pod: &Pod, container: &Container) -> Result<()> {
    let _gate = container.init.gate.lock().await;
    container.init.allow(Ask::Resume)?;
    pod.machine()?.agent.resume_container(&container.in_guest()?.name.workload_id()).await?;
    if container.init.turn(Life::Paused, Life::Running) {
        pod.events.send(Event::Resumed { id: container.id.clone() });
    }
    Ok(())
}
