//! Exec: another process in a running container, registered first and run by its own start.

use std::sync::Arc;

use oci_spec::runtime::Process as OciProcess;

use super::life::{Ask, Life};
use super::process::lock;
use super::{Container, Process, exit};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::guest::spec;
use crate::sandbox::pod::Pod;
use crate::task::{Exec, Pid};

impl Container {
    /// Registers a process; its start runs it.
    ///
    /// # Errors
    /// `AlreadyExists` for an exec id in use, `FailedPrecondition` unless the container runs.
    pub(crate) fn add_exec(&self, request: &Exec) -> Result<()> {
        self.in_guest()?;
        self.init.allow(Ask::Exec)?;
        let mut execs = lock(&self.execs);
        if execs.contains_key(&request.exec) {
            let text = format!("Container {} has a process {} already", self.id, request.exec);
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        let process =
            Process::planned(&self.id, &request.exec, request.streams.clone(), request.process.clone());
        execs.insert(request.exec.clone(), Arc::new(process));
        Ok(())
    }

    /// Forgets an ended process.
    pub(super) fn remove_exec(&self, exec: &str) {
        lock(&self.execs).remove(exec);
    }

    /// Host processes that stand for those of the container that have not ended.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let live = |process: &Arc<Process>| process.life().exit().is_none() && process.pid() != 0;
        let first =
            Some(&self.init).filter(|init| live(init)).map(|init| Pid { pid: init.pid(), exec: None });
        let execs = self.execs();
        let execs = execs.iter().filter(|exec| live(exec));
        let execs = execs.map(|exec| Pid { pid: exec.pid(), exec: Some(exec.exec.clone()) });
        first.into_iter().chain(execs).collect()
    }
}

/// Starts a registered process.
pub(crate) async fn start(pod: &Arc<Pod>, container: &Arc<Container>, process: &Arc<Process>) -> Result<u32> {
    let gate = process.gate.lock().await;
    container.init.allow(Ask::Exec)?;
    process.allow(Ask::Start)?;
    let Some(plan) = process.plan() else {
        return Err(Error::new(Kind::Internal, format!("{} has nothing to run", process.what())));
    };
    process.turn(Life::Created, Life::Starting);
    if let Err(error) = run(pod, container, process, plan).await {
        // Like runc's, a process that could not be started has ended: it can't be started again, only deleted.
        process.turn(Life::Starting, Life::Created);
        let cleanup = process.disembody().await.err().into_iter().collect();
        return Err(error.with_cleanup(cleanup));
    }
    process.turn(Life::Starting, Life::Running);
    let pid = process.pid();
    pod.events.send(Event::ExecStarted { id: container.id.clone(), exec: process.exec.clone(), pid });
    drop(gate);
    exit::watch(pod.clone(), container.clone(), process.clone());
    Ok(pid)
}

async fn run(pod: &Pod, container: &Container, process: &Process, plan: &OciProcess) -> Result<()> {
    let workload = container.in_guest()?.name.workload_id();
    let agent = &pod.machine()?.agent;
    let procs = container.cgroup().map(|cgroup| cgroup.procs()).unwrap_or_default();
    process.open_streams(&pod.home.namespace).await?;
    process.embody(&pod.place(procs), &pod.ledger).await?;
    agent.exec_process(&workload, &process.exec, spec::process(plan)?).await?;
    if let Some(stdio) = process.stdio() {
        stdio.connect(agent, &workload, &process.exec);
    }
    Ok(())
}
