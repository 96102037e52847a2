//! Cloud Hypervisor as the VMM: where KVM works. Made by [`super::choose`].

mod api;
mod channel;
mod config;
mod events;
mod files;
mod landlock;
mod rewrite;
mod state;
mod version;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use self::api::{Api, Verb};
use self::files::Files;
pub(super) use self::landlock::needs_landlock;
pub(super) use self::version::Version;
use super::life::Life;
use super::process::{Process, Program};
use super::{Death, Machine, Vm, VmmIdentity, console, cpu};
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// One binary of Cloud Hypervisor, as it is on this host.
#[derive(Debug, Clone)]
pub(super) struct CloudHypervisor {
    pub(super) path: PathBuf,
    pub(super) version: Version,
    /// Whether the VMM confines itself to the files of its machine.
    pub(super) landlock: bool,
}

impl super::Vmm for CloudHypervisor {
    fn machine(&self, machine: Machine, ledger: &Arc<Ledger>) -> Arc<dyn Vm> {
        Arc::new(ChVm {
            vmm: self.clone(),
            files: Files::of(&machine.dir),
            machine,
            ledger: Arc::clone(ledger),
            life: Life::new("Cloud Hypervisor"),
            running: Mutex::new(None),
        })
    }
}

/// The description of a machine that was saved anywhere, made the one of `machine`, as a restore does. Public for the
/// fuzzer.
///
/// # Errors
/// `InvalidArgument` naming what can't be restored.
pub fn rewritten_description(saved: &[u8], machine: &Machine, landlock: bool) -> Result<Vec<u8>> {
    rewrite::rewritten(saved, machine, &Files::of(&machine.dir), landlock)
}

/// One machine.
#[derive(Debug)]
struct ChVm {
    vmm: CloudHypervisor,
    machine: Machine,
    files: Files,
    ledger: Arc<Ledger>,
    life: Life,
    running: Mutex<Option<Arc<Running>>>,
}

/// A machine that was started.
#[derive(Debug)]
struct Running {
    process: Process,
    api: Api,
}

/// Of the answer to `vmm.ping`.
#[derive(Deserialize)]
struct Pong {
    version: String,
}

/// Of the answer to `vm.info`.
#[derive(Deserialize)]
struct Info {
    state: String,
}

impl ChVm {
    fn running(&self) -> Result<Arc<Running>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        running.ok_or_else(|| Error::new(Kind::FailedPrecondition, "The virtual machine was never started"))
    }

    /// Starts the VMM, without a machine, and asks it for its version.
    async fn start(&self) -> Result<Arc<Running>> {
        let (running, told) = self.spawn()?;
        tokio::spawn(end_with_guest(Arc::clone(&running), told));
        let pong: Pong = self.life.unless_dead("start", running.api.ask(Verb::Ping)).await?;
        pong.version.parse::<Version>()?.check()?;
        Ok(running)
    }

    fn spawn(&self) -> Result<(Arc<Running>, pipe::Receiver)> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Err(Error::new(Kind::FailedPrecondition, "The virtual machine was started already"));
        }
        for resource in self.files.resources() {
            self.ledger.claim(resource)?;
        }
        let state = self.files.state();
        state::make(&state)?;
        // It listens before the VMM runs, so that nobody has to wait for it to appear.
        let api = self.files.api();
        let listener: OwnedFd = UnixListener::bind(&api)
            .context(|| format!("Could not make the socket {}", api.display()))?
            .into();
        let (tells, told) = events_pipe().context(|| "Could not make a pipe for the VMM's events".into())?;
        let program = Program {
            path: self.vmm.path.clone(),
            arguments: arguments(&listener, &tells),
            inherited: vec![listener, tells],
            dir: self.machine.dir.clone(),
        };
        let process = Process::start(&program, &self.machine.placement, &self.ledger, self.life.sender())?;
        // Ours of the inherited descriptors are closed with `program`, so that the VMM's end closes both.
        let started = Arc::new(Running { process, api: Api::at(api) });
        *running = Some(Arc::clone(&started));
        Ok((started, told))
    }

    /// Asks for something that is told by its verb alone.
    async fn call(&self, verb: Verb) -> Result<()> {
        let running = self.running()?;
        self.life.unless_dead(&verb.to_string(), running.api.call(verb)).await
    }

    /// Asks for it unless the machine is in `state` already, in which the VMM would refuse.
    async fn bring(&self, state: &str, verb: Verb) -> Result<()> {
        if self.state().await? == state {
            return Ok(());
        }
        self.call(verb).await
    }

    async fn state(&self) -> Result<String> {
        let running = self.running()?;
        let info = self.life.unless_dead("vm.info", running.api.ask::<Info>(Verb::Info)).await?;
        Ok(info.state)
    }
}

/// The VMM's command line: it is told everything else over its API.
fn arguments(api: &OwnedFd, events: &OwnedFd) -> Vec<String> {
    let [api, events] = [api, events].map(AsRawFd::as_raw_fd);
    ["--api-socket", &format!("fd={api}"), "--event-monitor", &format!("fd={events}"), "--seccomp", "true"]
        .map(str::to_owned)
        .to_vec()
}

/// A pipe that the VMM writes and we read.
fn events_pipe() -> std::io::Result<(OwnedFd, pipe::Receiver)> {
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let receiver = pipe::Receiver::from_owned_fd(ours)?;
    Ok((theirs, receiver))
}

/// Ends the VMM with its guest.
async fn end_with_guest(running: Arc<Running>, told: pipe::Receiver) {
    if let Some(event) = events::end(told).await {
        log::warn!("The guest has ended ({event}), and so does its VMM");
        if let Err(error) = running.process.stop().await {
            log::error!("{}", error.chain());
        }
    }
}

#[async_trait]
impl Vm for ChVm {
    async fn boot(&self) -> Result<()> {
        let body = config::of(&self.machine, &self.files, self.vmm.landlock)?;
        let running = self.start().await?;
        self.life.unless_dead("vm.create", running.api.send(Verb::Create, &body)).await?;
        self.call(Verb::Boot).await
    }

    async fn restore(&self, dir: &Path) -> Result<()> {
        let incoming = self.files.incoming();
        self.ledger.claim(Resource::Directory(incoming.clone()))?;
        state::load(dir, &incoming, |saved| rewritten_description(saved, &self.machine, self.vmm.landlock))?;
        let body = json!({ "source_url": state::url(&incoming)? });
        let running = self.start().await?;
        self.life.unless_dead("vm.restore", running.api.send(Verb::Restore, &body)).await?;
        self.ledger.release(&Resource::Directory(incoming))
    }

    async fn pause(&self) -> Result<()> {
        self.bring("Paused", Verb::Pause).await
    }

    async fn resume(&self) -> Result<()> {
        self.bring("Running", Verb::Resume).await
    }

    async fn save(&self, dir: &Path) -> Result<Vec<String>> {
        let running = self.running()?;
        let state = self.state().await?;
        if state != "Paused" {
            let text = format!("A virtual machine that is {state} can't be saved; pause it first");
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        // The VMM may write into a directory of its own only, wherever the snapshot goes.
        let own = self.files.state();
        state::make(&own)?;
        let body = json!({ "destination_url": state::url(&own)? });
        self.life.unless_dead("vm.snapshot", running.api.send(Verb::Snapshot, &body)).await?;
        state::take(&own, dir)
    }

    async fn connect_agent(&self, deadline: Duration) -> Result<UnixStream> {
        self.running()?;
        let socket = self.files.vsock();
        self.life.unless_dead("the wait for the guest's agent", channel::dial(&socket, deadline)).await
    }

    async fn stop(&self) -> Result<()> {
        let Ok(running) = self.running() else { return Ok(()) };
        running.process.stop().await?;
        for socket in [self.files.api(), self.files.vsock()] {
            self.ledger.release(&Resource::File(socket))?;
        }
        Ok(())
    }

    fn death(&self) -> watch::Receiver<Option<Death>> {
        self.life.receiver()
    }

    fn pid(&self) -> Option<u32> {
        self.running().ok()?.process.pid()
    }

    async fn identity(&self) -> Result<VmmIdentity> {
        Ok(VmmIdentity {
            name: "cloud-hypervisor".into(),
            version: self.vmm.version.to_string(),
            accelerator: "kvm".into(),
            cpu: format!("host ({})", cpu::model().unwrap_or_else(|| "unknown".into())),
            // Its one machine changes with its version only.
            machine: "cloud-hypervisor".into(),
        })
    }

    fn console_tail(&self) -> String {
        console::tail_of(&console::path(&self.machine.dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{FsDevice, NetDevice, Placement};

    /// A machine with one of everything.
    pub(super) fn machine() -> Machine {
        let dir = PathBuf::from("/run/microvm/k8s.io/p1");
        let share = |tag: &str| FsDevice { tag: tag.into(), socket: dir.join(format!("{tag}.sock")) };
        Machine {
            kernel: "/usr/share/microvm/guest/vmlinux".into(),
            initramfs: "/usr/share/microvm/guest/initramfs".into(),
            kernel_params: "microvm.debug".into(),
            vcpus: 2,
            memory: 256 << 20,
            ram: dir.join("ram/mem"),
            shares: vec![share("kataShared"), share("volumes")],
            nics: vec![NetDevice { tap: "microvm-tap0".into(), mac: "02:00:00:00:00:07".into() }],
            placement: Placement::default(),
            dir,
        }
    }
}
