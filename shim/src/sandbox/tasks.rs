//! The Task API of a sandbox: each request finds its container, and goes to the operation that does it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::runtime::LinuxResources;

use super::facts::{self, Role};
use super::pod::Pod;
use super::{Sandbox, boot, checkpoint, pids, stop, watch};
use crate::container::{self, Ask, Container, InGuest, Origin};
use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::guest::spec::GuestPids;
use crate::guest::{GuestName, spec};
use crate::phases::Phases;
use crate::task::{Connected, Create, Deleted, Exec, Exit, Pid, ProcessRef, State, Stats, Tasks};

/// The sandbox as `service` serves it.
#[derive(Debug, Clone)]
pub struct Served(pub Arc<Sandbox>);

#[async_trait]
impl Tasks for Served {
    async fn create(&self, request: Create) -> Result<u32> {
        let _creating = self.0.creating.lock().await;
        if self.0.find(&request.id).is_ok() {
            let text = format!("Container {} exists in sandbox {}", request.id, self.0.home.id);
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        let spec = facts::read_spec(&request.bundle)?;
        let role = facts::role(&spec)?;
        let pids = pids::seen_by(&spec, &self.0)?;
        let (pod, fresh) = self.pod_for(&request, &spec, &role).await?;
        match create(&pod, &request, spec, role, pids).await {
            Ok(container) => {
                let pid = container.init.pid();
                let mut state = self.0.state();
                state.pod = Some(pod);
                state.containers.insert(request.id.clone(), Arc::new(container));
                drop(state);
                self.0.events.send(Event::Created {
                    id: request.id,
                    bundle: request.bundle.to_string_lossy().into_owned(),
                    rootfs: request.rootfs,
                    streams: request.streams,
                    checkpoint: request.checkpoint,
                    pid,
                });
                Ok(pid)
            }
            Err(error) if fresh => Err(error.with_cleanup(stop::stop(&self.0, &pod).await)),
            Err(error) => Err(error),
        }
    }

    async fn start(&self, process: ProcessRef<'_>) -> Result<u32> {
        let (pod, container) = self.0.find(process.container)?;
        let started = container.process(process)?;
        let pid = if process.exec.is_empty() {
            container::start::start(&pod, &container, self.run(&pod, &container)).await?
        } else {
            container::exec::start(&pod, &container, &started).await?
        };
        watch::over_process(&self.0, &pod, &container, &started);
        Ok(pid)
    }

    async fn exec(&self, request: Exec) -> Result<()> {
        let (pod, container) = self.0.find(&request.id)?;
        container.add_exec(&request)?;
        pod.events.send(Event::ExecAdded { id: request.id, exec: request.exec });
        Ok(())
    }

    async fn state(&self, process: ProcessRef<'_>) -> Result<State> {
        let (_, container) = self.0.find(process.container)?;
        Ok(container.process(process)?.state(&container.id, &container.bundle))
    }

    async fn kill(&self, process: ProcessRef<'_>, signal: u32, all: bool) -> Result<()> {
        let (pod, container) = self.0.find(process.container)?;
        let target = container.process(process)?;
        if container.guest.is_none() {
            return self.kill_sandbox(&pod, &container, signal).await;
        }
        let delivery = container::kill::kill(&pod, &container, &target, signal, all).await?;
        if signal == container::kill::SIGKILL {
            watch::after_sigkill(&self.0, &pod, &target, delivery);
        }
        Ok(())
    }

    async fn wait(&self, process: ProcessRef<'_>) -> Result<Exit> {
        let (_, container) = self.0.find(process.container)?;
        container.process(process)?.wait().await
    }

    async fn delete(&self, process: ProcessRef<'_>) -> Result<Deleted> {
        let (pod, container) = self.0.find(process.container)?;
        if !process.exec.is_empty() {
            let exec = container.process(process)?;
            return container::delete::exec(&container, &exec).await;
        }
        let (deleted, mut failures) = container::delete::container(&pod, &container).await?;
        self.0.state().containers.remove(process.container);
        if !pod.outlives(&container) {
            failures.extend(stop::stop(&self.0, &pod).await);
        }
        for failure in failures {
            log::error!("Container {} is deleted, but: {}", process.container, failure.chain());
        }
        pod.events.send(Event::Deleted {
            id: process.container.into(),
            pid: deleted.pid,
            exit: deleted.exit,
        });
        Ok(deleted)
    }

    async fn pids(&self, id: &str) -> Result<Vec<Pid>> {
        Ok(self.0.find(id)?.1.pids())
    }

    async fn pause(&self, id: &str) -> Result<()> {
        let (pod, container) = self.0.find(id)?;
        container::freeze::pause(&pod, &container).await
    }

    async fn resume(&self, id: &str) -> Result<()> {
        let (pod, container) = self.0.find(id)?;
        container::freeze::resume(&pod, &container).await
    }

    async fn checkpoint(&self, id: &str, path: PathBuf, exit: bool) -> Result<()> {
        let (pod, _) = self.0.find(id)?;
        checkpoint::checkpoint(&self.0, &pod, &path).await?;
        let checkpoint = path.to_string_lossy().into_owned();
        pod.events.send(Event::Checkpointed { id: id.into(), checkpoint });
        if exit {
            watch::collapse(&self.0, &pod, "its checkpoint asked it to exit").await;
        }
        Ok(())
    }

    async fn update(&self, id: &str, resources: LinuxResources) -> Result<()> {
        let (pod, container) = self.0.find(id)?;
        container::tune::update(&pod, &container, resources).await
    }

    async fn stats(&self, id: &str) -> Result<Stats> {
        let (pod, container) = self.0.find(id)?;
        if container.guest.is_none() {
            return crate::stats::of_process(pod.machine().ok().and_then(|machine| machine.vm.pid()));
        }
        container::tune::stats(&pod, &container).await
    }

    async fn resize(&self, process: ProcessRef<'_>, width: u16, height: u16) -> Result<()> {
        let (pod, container) = self.0.find(process.container)?;
        let target = container.process(process)?;
        container::tune::resize(&pod, &container, &target, (width, height)).await
    }

    async fn close_stdin(&self, process: ProcessRef<'_>) -> Result<()> {
        let (_, container) = self.0.find(process.container)?;
        if let Some(stdio) = container.process(process)?.stdio() {
            stdio.close_stdin();
        }
        Ok(())
    }

    async fn connect(&self, id: &str) -> Result<Connected> {
        let task = self.0.find(id).map_or(0, |(_, container)| container.init.pid());
        Ok(Connected { shim: std::process::id(), task })
    }

    async fn shutdown(&self) -> Result<bool> {
        if !self.0.state().containers.is_empty() {
            return Ok(false);
        }
        let pod = self.0.state().pod.take();
        if let Some(pod) = pod {
            for failure in stop::stop(&self.0, &pod).await {
                log::error!("At shutdown: {}", failure.chain());
            }
        }
        Ok(true)
    }
}

impl Served {
    /// The pod that a new container belongs to, and whether it was made for it.
    async fn pod_for(&self, request: &Create, spec: &facts::Spec, role: &Role) -> Result<(Arc<Pod>, bool)> {
        let refuse = |text: String| Err(Error::new(Kind::FailedPrecondition, text));
        match (self.0.pod(), role) {
            (Ok(pod), Role::Member { .. }) => Ok((pod, false)),
            (Ok(_), _) => refuse(format!("Sandbox {} has its own container already", self.0.home.id)),
            (Err(_), Role::Member { .. }) => {
                let pod = facts::sandbox_id(spec).unwrap_or_default();
                refuse(format!(
                    "Container {} belongs to the pod {pod}, which has not been created",
                    request.id
                ))
            }
            (Err(_), _) => Ok((Pod::prepare(&self.0.home, &self.0.events, request, spec).await?, true)),
        }
    }

    /// Brings a container to life: boots the VM for the sandbox's own, makes and runs what belongs into the guest.
    async fn run(&self, pod: &Arc<Pod>, container: &Container) -> Result<()> {
        let mut phases = Phases::begin("start");
        if !pod.outlives(container) {
            boot::boot(pod, &mut phases).await?;
            watch::over(&self.0, pod);
        }
        if container.role == Role::Single {
            container::create::in_guest(pod, container).await?;
            phases.done("container");
        }
        if container.guest.is_some() {
            container::start::in_guest(pod, container).await?;
            phases.done("process");
        }
        phases.finish();
        Ok(())
    }

    /// A signal for CRI's pause container: whatever would end it ends the pod.
    async fn kill_sandbox(&self, pod: &Arc<Pod>, container: &Container, signal: u32) -> Result<()> {
        container.init.allow(Ask::Kill)?;
        if ends_pause(signal) {
            pod.set_stopping();
            watch::collapse(&self.0, pod, "its sandbox was killed").await;
        }
        Ok(())
    }
}

/// Whether `signal` ends CRI's pause program, or one like it.
fn ends_pause(signal: u32) -> bool {
    [libc::SIGKILL, libc::SIGTERM, libc::SIGINT].map(i32::unsigned_abs).contains(&signal)
}

/// Makes a container of `pod`: its host half, and its guest half if the guest runs already.
async fn create(
    pod: &Arc<Pod>,
    request: &Create,
    spec: facts::Spec,
    role: Role,
    pids: GuestPids,
) -> Result<Container> {
    let mut guest = match &role {
        Role::Pod => None,
        Role::Member { name } => {
            Some(in_guest(pod, &spec, GuestName::from_cri(name), request, Some(name)).await?)
        }
        Role::Single => Some(in_guest(pod, &spec, GuestName::from_id(&request.id), request, None).await?),
    };
    if let Some(guest) = &mut guest {
        guest.pids = pids;
    }
    let mut phases = Phases::begin("container");
    let container = Container::new(request, spec, role, guest);
    container::create::on_host(pod, &container, &request.rootfs).await?;
    phases.done("host");
    if matches!(container.role, Role::Member { .. })
        && let Err(error) = container::create::in_guest(pod, &container).await
    {
        return Err(error.with_cleanup(container::delete::on_host(pod, &container).await));
    }
    phases.done("guest");
    phases.finish();
    Ok(container)
}

/// A container's place in the guest: a new one, or the one that the snapshot kept for it.
async fn in_guest(
    pod: &Arc<Pod>,
    spec: &facts::Spec,
    name: GuestName,
    request: &Create,
    cri: Option<&str>,
) -> Result<InGuest> {
    if let Some(restored) = &pod.restored
        && let Some(adopted) = restored.adopt(pod, spec, cri, request).await?
    {
        return Ok(adopted);
    }
    let generation = pod.next_generation(&name);
    let mut workload = spec::workload(spec, &name, generation, &pod.layout(&request.bundle))?;
    workload.inherit_sysctls(&pod.sysctls);
    Ok(InGuest {
        name,
        generation,
        volumes: generation,
        workload,
        pids: GuestPids::default(),
        origin: Origin::New,
    })
}
