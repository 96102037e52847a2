//! Watches over a running pod: the death of its VM, of a share's daemon or of the agent's connection ends all of its
//! processes at once, and the guest's OOM kills become events. Started by the sandbox's Start.

use std::sync::Arc;
use std::time::Duration;

use super::Sandbox;
use super::pod::Pod;
use crate::container::kill::{self, Delivery};
use crate::container::{Container, KILLED, Process, exit};
use crate::error::{Error, Kind};
use crate::events::Event;

/// How long a process may outlive SIGKILL before the VM is ended instead. Under emulation on a loaded machine a guest
/// that is well needs up to 2 s (measured with two vCPUs' worth of load on one).
const GRACE: Duration = Duration::from_secs(10);

/// Longest wait for the agent of a guest that has not taken SIGKILL to say that it is there. With the two seconds that
/// the signal had, a hung guest is gone within five.
const ANSWER: Duration = Duration::from_secs(3);

/// Watches over the pod until it is stopped, in tasks of its own.
pub(super) fn over(sandbox: &Arc<Sandbox>, pod: &Arc<Pod>) {
    tokio::spawn(deaths(sandbox.clone(), pod.clone()));
    tokio::spawn(oom_kills(sandbox.clone(), pod.clone()));
}

async fn deaths(sandbox: Arc<Sandbox>, pod: Arc<Pod>) {
    let Ok(machine) = pod.machine() else { return };
    let (mut vmm, mut share) = (machine.vm.death(), pod.share.death());
    let reason = tokio::select! {
        death = vmm.wait_for(Option::is_some) => match death.ok().and_then(|death| death.clone()) {
            Some(death) => format!("the VMM ended with {}: {}", death.status, death.last_words),
            None => "the VMM is gone".into(),
        },
        death = share.wait_for(Option::is_some) => match death.ok().and_then(|death| death.clone()) {
            Some(death) => format!("a file share of the guest ended: {death}"),
            None => "the file shares are gone".into(),
        },
        () = machine.agent.closed() => "the guest's agent is gone".into(),
    };
    collapse(&sandbox, &pod, &reason).await;
}

/// Ends the VM, if it has not ended, and every process that was in it: execs first, the sandbox's own task last.
pub(super) async fn collapse(sandbox: &Sandbox, pod: &Arc<Pod>, reason: &str) {
    if !pod.is_stopping() {
        log::error!("The pod ends: {reason}");
    }
    if let Ok(machine) = pod.machine()
        && let Err(error) = machine.stop().await
    {
        log::error!("{}", error.chain());
    }
    for container in sandbox.containers() {
        end_all(pod, &container).await;
    }
}

async fn end_all(pod: &Pod, container: &Container) {
    for exec in container.execs() {
        // Who starts it just now sees the guest gone, and lets go.
        let _gate = exec.gate.lock().await;
        exit::announce(pod, container, &exec, KILLED).await;
    }
    let _gate = container.init.gate.lock().await;
    exit::announce(pod, container, &container.init, KILLED).await;
}

async fn oom_kills(sandbox: Arc<Sandbox>, pod: Arc<Pod>) {
    let Ok(machine) = pod.machine() else { return };
    loop {
        match machine.agent.oom_event().await {
            Ok(workload) => {
                let named = |container: &Arc<Container>| {
                    container.guest.as_ref().is_some_and(|guest| guest.name.workload_id() == workload)
                };
                match sandbox.containers().into_iter().find(named) {
                    Some(container) => pod.events.send(Event::OutOfMemory { id: container.id.clone() }),
                    None => log::warn!(
                        "The guest reports an OOM kill in {workload:?}, which is no container of the pod"
                    ),
                }
            }
            Err(error) if error.kind() == Kind::Unavailable => return,
            Err(error) => {
                // A guest that fails at once would have us ask without a pause: ask no more.
                log::warn!("OOM kills are not reported any more: {}", Error::chain(&error));
                return;
            }
        }
    }
}

/// Watches over a process that begins to run: who kills the pid that we report means the process.
pub(super) fn over_process(
    sandbox: &Arc<Sandbox>,
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    process: &Arc<Process>,
) {
    let (sandbox, pod) = (sandbox.clone(), pod.clone());
    let (container, process) = (container.clone(), process.clone());
    tokio::spawn(async move {
        tokio::select! {
            _ = process.wait() => return,
            () = process.disembodied() => {}
        }
        // The stub of a process that has ended is taken away by us.
        if process.life().exit().is_some() {
            return;
        }
        log::warn!(
            "The host's process {} of {} was killed, and so is what it stands for",
            process.pid(),
            process.what()
        );
        if container.guest.is_none() {
            return collapse(&sandbox, &pod, "its sandbox's process on the host was killed").await;
        }
        match kill::kill(&pod, &container, &process, kill::SIGKILL, false).await {
            Ok(delivery) => insist(&sandbox, &pod, &process, delivery).await,
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => log::error!("{}", error.chain()),
        }
    });
}

/// Makes sure, in a task of its own, that SIGKILL ends in an exit.
pub(super) fn after_sigkill(
    sandbox: &Arc<Sandbox>,
    pod: &Arc<Pod>,
    process: &Arc<Process>,
    delivery: Delivery,
) {
    let (sandbox, pod, process) = (sandbox.clone(), pod.clone(), process.clone());
    tokio::spawn(async move { insist(&sandbox, &pod, &process, delivery).await });
}

/// Ends the VM when the guest is hung, or when `process` is still there after the grace.
async fn insist(sandbox: &Sandbox, pod: &Arc<Pod>, process: &Process, delivery: Delivery) {
    if delivery == Delivery::Unanswered {
        // A checkpoint holds the guest still; its time does not count.
        drop(pod.busy.lock().await);
        if is_hung(pod).await && process.life().exit().is_none() {
            let reason = format!("the guest hangs, and {} was to be killed", process.what());
            return collapse(sandbox, pod, &reason).await;
        }
    }
    if tokio::time::timeout(GRACE, process.wait()).await.is_ok() {
        return;
    }
    drop(pod.busy.lock().await);
    if tokio::time::timeout(GRACE / 2, process.wait()).await.is_err() {
        collapse(sandbox, pod, &format!("{} is still there after SIGKILL", process.what())).await;
    }
}

/// Whether the agent does not answer the simplest question.
async fn is_hung(pod: &Pod) -> bool {
    let Ok(machine) = pod.machine() else { return false };
    !matches!(tokio::time::timeout(ANSWER, machine.agent.check()).await, Ok(Ok(())))
}
