//! Start: a container's first process begins to run, or goes on from where the snapshot left it.

use std::sync::Arc;

use super::hooks::{self, Moment};
use super::life::{Ask, Life};
use super::{Container, Origin, exit};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::sandbox::pod::Pod;

/// Starts the container's first process, which `run` brings to life, and announces it. Only then its exit is
/// waited for, so that the events come in order.
pub(crate) async fn start(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    run: impl Future<Output = Result<()>>,
) -> Result<u32> {
    let init = &container.init;
    let gate = init.gate.lock().await;
    init.allow(Ask::Start)?;
    init.turn(Life::Created, Life::Starting);
    if let Err(error) = run.await {
        init.turn(Life::Starting, Life::Created);
        return Err(error);
    }
    init.turn(Life::Starting, Life::Running);
    let pid = init.pid();
    pod.events.send(Event::Started { id: container.id.clone(), pid });
    drop(gate);
    if container.guest.is_some() {
        exit::watch(pod.clone(), container.clone(), init.clone());
    }
    let about = container.about();
    // The container runs already: like runc, report a failing poststart hook without undoing the start.
    if let Err(error) = hooks::run(&container.spec, Moment::Started, about, pod.config.hook_timeout()).await {
        log::warn!("{}", Error::chain(&error));
    }
    Ok(pid)
}

/// Runs the workload in the guest: from its beginning, or thawed where the snapshot froze it.
pub(crate) async fn in_guest(pod: &Pod, container: &Container) -> Result<()> {
    let guest = container.in_guest()?;
    let agent = &pod.machine()?.agent;
    let workload = guest.name.workload_id();
    if let Some(stdio) = container.init.stdio() {
        stdio.connect(agent, &workload, &workload);
    }
    let volumes = guest.workload.volume_mounts();
    if guest.origin != Origin::New && !volumes.is_empty() {
        agent.rebind(&workload, volumes).await?;
    }
    match guest.origin {
        Origin::New | Origin::Created => agent.start_container(&workload).await,
        Origin::Frozen => agent.resume_container(&workload).await,
    }
}
