//! Kill: a signal for one process or for all of a container. SIGKILL always ends in an exit: what the guest does not
//! do within a grace, the sandbox does by ending the VM.

use std::sync::Arc;
use std::time::Duration;

use super::life::{Ask, Life, Signal};
use super::{Container, Process, exit};
use crate::error::{Error, Kind, Result};
use crate::sandbox::pod::Pod;

/// Number of SIGKILL.
pub(crate) const SIGKILL: u32 = 9;

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The guest took it, or nothing ran that could have.
    Taken,
    /// The guest has not answered yet.
    Unanswered,
}

/// Longest wait for the guest to take a signal. State and Kill must answer while the guest hangs.
const DELIVERY: Duration = Duration::from_secs(2);

/// Delivers `signal`; `all` reaches every process of the container.
///
/// # Errors
/// `NotFound` once the process has ended, `DeadlineExceeded` when the guest does not take a signal other than SIGKILL.
pub(crate) async fn kill(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    process: &Arc<Process>,
    signal: u32,
    all: bool,
) -> Result<Delivery> {
    process.allow(Ask::Kill)?;
    if process.life().signal() == Signal::EndNow {
        if !process.exec.is_empty() {
            let text = format!("Cannot signal {}: it has not been started", process.what());
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        // Its start may have come first; then the guest has to be told after all.
        let _gate = process.gate.lock().await;
        if process.life() == Life::Created {
            exit::finish(pod, container, process, 128 + signal).await;
            return Ok(Delivery::Taken);
        }
    }
    let workload = container.in_guest()?.name.workload_id();
    let agent = &pod.machine()?.agent;
    let name = if all { "" } else { exit::agent_exec(process, &workload) };
    let sent = tokio::time::timeout(DELIVERY, agent.signal_process(&workload, name, signal)).await;
    match sent {
        Ok(Ok(())) => Ok(Delivery::Taken),
        // It has ended between our look and the guest's; its exit is under way.
        Ok(Err(error)) if error.kind() == Kind::NotFound => Ok(Delivery::Taken),
        Ok(Err(error)) if signal != SIGKILL => Err(error),
        Err(_) if signal != SIGKILL => Err(Error::new(
            Kind::DeadlineExceeded,
            format!("The guest did not take signal {signal} for {} within {DELIVERY:?}", process.what()),
        )),
        // SIGKILL is not lost: the sandbox waits for the exit and ends the VM without it.
        Ok(Err(error)) => {
            log::warn!("{}", error.chain());
            Ok(Delivery::Unanswered)
        }
        Err(_) => {
            log::warn!("The guest did not take SIGKILL for {} within {DELIVERY:?}", process.what());
            Ok(Delivery::Unanswered)
        }
    }
}
