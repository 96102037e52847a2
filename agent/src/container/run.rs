//! Starts the program of a container, and more processes in it.

use std::sync::Arc;

use agent_proto::oci;
use tokio::time::timeout;

use super::link::{Go, Job};
use super::process::Process;
use super::spawn::{LAST_WAIT, Spawned, follow_to_program};
use super::{Container, DEADLINE, Phase, State, plan, too_late, wrong_state};
use crate::error::{Error, Kind, Result};
use crate::stdio::Streams;

pub(super) async fn start(container: &Container) -> Result<()> {
    let failed = |error: Error| {
        Error::caused(error.kind(), format!("Could not start container {}", container.id), error)
    };
    let state = container.state("")?;
    // Not in the `match` itself, which would hold the lock to its end.
    let phase = std::mem::replace(&mut *container.phase(), Phase::Starting);
    let mut link = match phase {
        Phase::Created(link) if state == State::Created => link,
        // Ended before its start: the link is of no use any more.
        Phase::Created(_) => return Err(wrong_state(&container.id, "started", state)),
        other => {
            *container.phase() = other;
            return Err(wrong_state(&container.id, "started", state));
        }
    };
    let go = async {
        link.send(&Go).await?;
        follow_to_program(&mut link).await
    };
    let deadline = container.start_deadline;
    let started =
        timeout(deadline, go).await.unwrap_or_else(|_| Err(too_late("The program did not start", deadline)));
    *container.phase() = Phase::Running;
    if let Err(error) = started {
        // A process that has told why it ends does so by itself, with the exit code that fits.
        if error.kind() == Kind::DeadlineExceeded {
            container.cgroup.kill()?;
        }
        // So that the caller finds it stopped. One that hangs in the kernel is told of as it is.
        let _ = timeout(LAST_WAIT, container.init.child.wait()).await;
        return Err(failed(error));
    }
    Ok(())
}

pub(super) async fn exec(container: &Arc<Container>, exec_id: &str, process: &oci::Process) -> Result<()> {
    let failed = |error: Error| {
        Error::caused(
            error.kind(),
            format!("Could not run process {exec_id:?} in container {}", container.id),
            error,
        )
    };
    if container.is_init(exec_id) {
        return Err(Error::new(Kind::AlreadyExists, format!("{exec_id:?} is the container's first process")));
    }
    let state = container.state("")?;
    if state != State::Running {
        return Err(wrong_state(&container.id, "exec'd in", state));
    }
    let process = plan::Process::new(process, container.filter.clone()).map_err(failed)?;
    container.execs().reserve(exec_id)?;
    match spawn(container, process).await {
        Ok(process) => {
            container.execs().set(exec_id, process);
            Ok(())
        }
        Err(error) => {
            container.execs().forget(exec_id);
            Err(failed(error))
        }
    }
}

async fn spawn(container: &Container, process: plan::Process) -> Result<Arc<Process>> {
    let init = container.init.child.pidfd()?;
    let pipes = if process.terminal.is_some() { None } else { Some(Streams::pipes()?) };
    let (pipes, ends) = pipes.unzip();
    let job = Job::Exec { process: Box::new(process), cgroup: container.cgroup.place_of(container.pid()) };
    let mut spawned = Spawned::new(&container.runtime, &job, ends, Some(init)).await?;
    let runs = match timeout(DEADLINE, spawned.follow()).await {
        Ok(Ok(false)) if spawned.forked() => Ok(()),
        Ok(Ok(false)) => Err(spawned.silence().await),
        Ok(Ok(true)) => Err(Error::new(Kind::Internal, "The helper waits where it must not")),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(too_late("The process did not start", DEADLINE)),
    };
    if let Err(error) = runs {
        spawned.abandon().await;
        return Err(error);
    }
    let made = spawned.made()?;
    let streams = match (pipes, made.terminal) {
        (Some(pipes), _) => pipes,
        (None, Some(master)) => Streams::terminal(master)?,
        (None, None) => return Err(Error::new(Kind::Internal, "The helper sent no terminal")),
    };
    Ok(Process::new(made.child, streams))
}
