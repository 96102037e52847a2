//! Exit: the end of a process is learned from the guest, or decided by the host when the VM is gone, and announced
//! once. A container's first process ends last: execs are announced before it.

use std::sync::Arc;
use std::time::Duration;

use super::{Container, KILLED, Process};
use crate::error::Kind;
use crate::events::Event;
use crate::sandbox::pod::Pod;

/// How long the first process's exit is held back for the exits of the execs that died with it.
const LAST_EXECS: Duration = Duration::from_secs(2);

/// Status of a process whose real one the guest could not tell, as containerd uses it.
const UNKNOWN: u32 = 255;

/// Waits for the exit of a running process in a task of its own.
pub(crate) fn watch(pod: Arc<Pod>, container: Arc<Container>, process: Arc<Process>) {
    tokio::spawn(async move {
        let (Ok(guest), Ok(machine)) = (container.in_guest(), pod.machine()) else { return };
        let workload = guest.name.workload_id();
        let status = match machine.agent.wait_process(&workload, agent_exec(&process, &workload)).await {
            Ok(status) => status,
            // The connection is gone, and so is the VM: the sandbox ends all processes at once, in order.
            Err(error) if error.kind() == Kind::Unavailable => return,
            Err(error) => {
                log::error!("Exit of {} is unknown: {}", process.what(), error.chain());
                UNKNOWN
            }
        };
        finish(&pod, &container, &process, status).await;
    });
}

/// Ends `process` with `status`, and everything of the container before if it is the first one.
pub(crate) async fn finish(pod: &Pod, container: &Container, process: &Process, status: u32) {
    if process.exec.is_empty() {
        for exec in container.execs() {
            let over = tokio::time::timeout(LAST_EXECS, exec.wait()).await;
            if over.is_err() && exec.life() != super::life::Life::Created {
                announce(pod, container, &exec, KILLED).await;
            }
        }
    }
    announce(pod, container, process, status).await;
}

/// Ends `process` without asking whether others are to end before it. Nothing happens if it has ended already.
pub(crate) async fn announce(pod: &Pod, container: &Container, process: &Process, status: u32) {
    let Some(exit) = process.end(status) else { return };
    let pid = process.pid();
    if let Err(error) = process.disembody().await {
        log::error!("{}", error.chain());
    }
    let (id, exec) = (container.id.clone(), process.exec.clone());
    pod.events.send(Event::Exited { id, exec, pid, exit });
    process.publish(exit);
}

/// Name of a process in the agent's requests: the first one carries its container's id.
pub(crate) fn agent_exec<'a>(process: &'a Process, workload: &'a str) -> &'a str {
    if process.exec.is_empty() { workload } else { &process.exec }
}
