//! What is asked of a running container besides its life: new limits, statistics, its terminal's size, the end of its
//! input.

use std::time::Duration;

use oci_spec::runtime::LinuxResources;

use super::life::Ask;
use super::process::lock;
use super::{Container, Process, exit};
use crate::error::Result;
use crate::guest::spec;
use crate::sandbox::pod::Pod;
use crate::stats;
use crate::task::Stats;

/// Longest wait for the guest's figures: kubelet asks every container of a node in a row.
const FIGURES: Duration = Duration::from_secs(2);

/// Sets the container's limits, in the guest and on the host.
///
/// # Errors
/// Whatever refuses them; then containerd keeps the old ones.
pub(crate) async fn update(pod: &Pod, container: &Container, resources: LinuxResources) -> Result<()> {
    container.init.allow(Ask::Update)?;
    if container.guest.is_some() && container.init.life() != super::life::Life::Created {
        in_guest(pod, container, &resources).await?;
    }
    if let Some(cgroup) = container.cgroup() {
        cgroup.update(&resources)?;
    }
    if container.init.life() == super::life::Life::Created {
        *lock(&container.waiting_update) = Some(resources);
    }
    Ok(())
}

/// Sets the limits in the guest.
pub(super) async fn in_guest(pod: &Pod, container: &Container, resources: &LinuxResources) -> Result<()> {
    let workload = container.in_guest()?.name.workload_id();
    pod.machine()?.agent.update_container(&workload, spec::resources(resources)).await
}

/// The container's statistics: the guest's figures, or the last ones known once it can't be asked any more.
pub(crate) async fn stats(pod: &Pod, container: &Container) -> Result<Stats> {
    let workload = container.in_guest()?.name.workload_id();
    let asked = match pod.machine() {
        Ok(machine) => tokio::time::timeout(FIGURES, machine.agent.stats(&workload)).await.ok(),
        Err(_) => None,
    };
    let answer = match asked {
        Some(Ok(answer)) => stats::translate(&answer)?,
        _ => match lock(&container.last_stats).clone() {
            Some(last) => return Ok(last),
            None => stats::translate(&Default::default())?,
        },
    };
    *lock(&container.last_stats) = Some(answer.clone());
    Ok(answer)
}

/// Sets the size of the process's terminal; nothing happens without one.
pub(crate) async fn resize(
    pod: &Pod,
    container: &Container,
    process: &Process,
    (width, height): (u16, u16),
) -> Result<()> {
    if !process.streams.terminal {
        return Ok(());
    }
    process.allow(Ask::Kill)?;
    let workload = container.in_guest()?.name.workload_id();
    let exec = exit::agent_exec(process, &workload);
    pod.machine()?.agent.resize(&workload, exec, width.into(), height.into()).await
}
