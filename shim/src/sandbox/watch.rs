//! Watches over a running pod: the death of its VM, of a share's daemon or of the agent's connection ends all of its
//! processes at once, and the guest's OOM kills become events. Started by the sandbox's Start.

use std::sync::Arc;
use std::time::Duration;

use super::Sandbox;
use super::pod::Pod;
use crate::container::{Container, KILLED, exit};
use crate::error::{Error, Kind};
use crate::events::Event;

/// How long a process may outlive SIGKILL before the VM is ended instead. Under emulation on a loaded machine a guest
/// that is well needs up to 2 s (measured with two vCPUs' worth of load on one).
const GRACE: Duration = Duration::from_secs(10);

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
        && let Err(error) = machine.vm.stop().await
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

/// Makes sure that SIGKILL ends in an exit: when `container`'s process is still there after the grace, the VM ends.
pub(super) fn after_sigkill(sandbox: &Arc<Sandbox>, pod: &Arc<Pod>, id: &str, exec: &str) {
    let (sandbox, pod) = (sandbox.clone(), pod.clone());
    let (id, exec) = (id.to_owned(), exec.to_owned());
    tokio::spawn(async move {
        let Ok((_, container)) = sandbox.find(&id) else { return };
        let Ok(process) = container.process(crate::task::ProcessRef { container: &id, exec: &exec }) else {
            return;
        };
        if tokio::time::timeout(GRACE, process.wait()).await.is_ok() {
            return;
        }
        // A checkpoint holds the guest still; its time does not count.
        drop(pod.busy.lock().await);
        if tokio::time::timeout(GRACE / 2, process.wait()).await.is_err() {
            collapse(&sandbox, &pod, &format!("{} is still there after SIGKILL", process.what())).await;
        }
    });
}
