//! QEMU as the VMM: wherever there is no KVM that works, by emulation (TCG), and with KVM too. Made by [`super::choose`].

mod command;
mod migrate;
mod qmp;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agent_proto::serial;
use async_trait::async_trait;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;

use self::command::{Architecture, Flavour, Start};
use self::qmp::Qmp;
use super::life::Life;
use super::process::{Process, Program};
use super::{Death, Machine, Vm, VmmIdentity, console, cpu};
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// Name of the virtio-serial port that the guest's agent serves.
const AGENT_PORT: &str = "microvm.agent.0";
/// Longest wait for an answer of the monitor, which QEMU gives at once; loading its libraries counts for the first.
const MONITOR: Duration = Duration::from_secs(10);
/// Pause between attempts to connect to the agent's port. QEMU keeps the port busy for a moment after a connection.
const AGAIN: Duration = Duration::from_millis(20);

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// Emulation.
    Tcg,
    /// The processor's virtualisation.
    Kvm,
}

impl Accelerator {
    pub(super) fn name(self) -> &'static str {
        match self {
            Accelerator::Tcg => "tcg",
            Accelerator::Kvm => "kvm",
        }
    }

    /// The CPU model: everything that the accelerator has.
    fn cpu(self) -> &'static str {
        match self {
            Accelerator::Tcg => "max",
            Accelerator::Kvm => "host",
        }
    }
}

/// One QEMU binary, as it is on this host.
#[derive(Debug, Clone)]
pub(super) struct Qemu {
    pub(super) path: PathBuf,
    /// Its version, like `11.1.2`.
    pub(super) version: String,
    pub(super) accelerator: Accelerator,
}

impl Qemu {
    /// The newest machine type that this version has, with its number: a pod must not change its hardware when it is
    /// restored.
    fn machine_type(&self) -> String {
        let mut numbers = self.version.split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        Architecture::HOST.machine(major, minor)
    }

    /// What the guest's CPU is. KVM passes the host's on, and a guest that has seen one must not wake up on another.
    fn cpu(&self) -> String {
        let model = self.accelerator.cpu();
        match self.accelerator {
            Accelerator::Tcg => model.to_owned(),
            Accelerator::Kvm => format!("{model} ({})", cpu::model().unwrap_or_else(|| "unknown".into())),
        }
    }

    fn flavour(&self) -> Flavour {
        Flavour {
            architecture: Architecture::HOST,
            accelerator: self.accelerator,
            machine: self.machine_type(),
        }
    }
}

impl super::Vmm for Qemu {
    fn machine(&self, machine: Machine, ledger: &Arc<Ledger>) -> Arc<dyn Vm> {
        Arc::new(QemuVm {
            qemu: self.clone(),
            machine,
            ledger: Arc::clone(ledger),
            life: Life::new("QEMU"),
            running: Mutex::new(None),
        })
    }
}

/// One machine.
#[derive(Debug)]
struct QemuVm {
    qemu: Qemu,
    machine: Machine,
    ledger: Arc<Ledger>,
    life: Life,
    running: Mutex<Option<Arc<Running>>>,
}

/// A machine that was started.
#[derive(Debug)]
struct Running {
    process: Process,
    monitor: OnceLock<Qmp>,
}

impl Running {
    fn monitor(&self) -> Result<&Qmp> {
        self.monitor
            .get()
            .ok_or_else(|| Error::new(Kind::FailedPrecondition, "QEMU is starting or has failed to"))
    }

    async fn execute(&self, command: &str) -> Result<Value> {
        self.monitor()?.execute(command, Value::Null, MONITOR).await
    }
}

impl QemuVm {
    fn running(&self) -> Result<Arc<Running>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        running.ok_or_else(|| Error::new(Kind::FailedPrecondition, "The virtual machine was never started"))
    }

    /// Starts QEMU and opens its monitor.
    async fn start(&self, start: Start) -> Result<Arc<Running>> {
        let pair = || -> std::io::Result<(UnixStream, OwnedFd)> {
            let (ours, theirs) = StdStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, theirs.into()))
        };
        let (ours, theirs) = pair().context(|| "Could not make a socket for QEMU's monitor".into())?;
        let running = self.spawn(start, theirs)?;
        let monitor = self.life.unless_dead("start", Qmp::open(ours, MONITOR)).await?;
        // It was empty: the machine is started once.
        let _ = running.monitor.set(monitor);
        Ok(running)
    }

    fn spawn(&self, start: Start, monitor: OwnedFd) -> Result<Arc<Running>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Err(Error::new(Kind::FailedPrecondition, "The virtual machine was started already"));
        }
        let agent = command::agent_socket(&self.machine.dir);
        let number = std::os::fd::AsRawFd::as_raw_fd(&monitor);
        let flavour = self.qemu.flavour();
        let program = Program {
            path: self.qemu.path.clone(),
            arguments: command::arguments(&self.machine, &flavour, start, number, &agent)?,
            inherited: vec![monitor],
            dir: self.machine.dir.clone(),
        };
        self.ledger.claim(Resource::File(console::path(&self.machine.dir)))?;
        self.ledger.claim(Resource::File(agent))?;
        let process = Process::start(&program, &self.machine.placement, &self.ledger, self.life.sender())?;
        // Ours of the inherited socket is closed with `program`, so that QEMU's end ends the monitor.
        let started = Arc::new(Running { process, monitor: OnceLock::new() });
        *running = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Runs a command of the monitor that has no arguments.
    async fn command(&self, command: &str) -> Result<()> {
        let running = self.running()?;
        self.life.unless_dead(command, running.execute(command)).await.map(drop)
    }

    /// Connects to the agent's port and shakes hands, until it works or `deadline` is over.
    async fn dial(&self, deadline: Duration) -> Result<UnixStream> {
        let socket = command::agent_socket(&self.machine.dir);
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let attempt = async {
                let mut stream = UnixStream::connect(&socket).await?;
                serial::hello(&mut stream, left).await.map(|()| stream)
            };
            match attempt.await {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() + AGAIN >= end => {
                    let text = format!("The guest's agent did not answer within {deadline:?}");
                    return Err(Error::caused(Kind::DeadlineExceeded, text, error));
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

#[async_trait]
impl Vm for QemuVm {
    async fn boot(&self) -> Result<()> {
        self.start(Start::Boot).await.map(drop)
    }

    async fn restore(&self, dir: &Path) -> Result<()> {
        let running = self.start(Start::Restore).await?;
        self.life.unless_dead("restore", migrate::load(running.monitor()?, dir)).await
    }

    async fn pause(&self) -> Result<()> {
        self.command("stop").await
    }

    async fn resume(&self) -> Result<()> {
        self.command("cont").await
    }

    async fn save(&self, dir: &Path) -> Result<Vec<String>> {
        let running = self.running()?;
        self.life.unless_dead("save", migrate::save(running.monitor()?, dir)).await
    }

    async fn connect_agent(&self, deadline: Duration) -> Result<UnixStream> {
        self.running()?;
        self.life.unless_dead("the wait for the guest's agent", self.dial(deadline)).await
    }

    async fn stop(&self) -> Result<()> {
        let Ok(running) = self.running() else { return Ok(()) };
        running.process.stop().await?;
        self.ledger.release(&Resource::File(command::agent_socket(&self.machine.dir)))
    }

    fn death(&self) -> watch::Receiver<Option<Death>> {
        self.life.receiver()
    }

    fn pid(&self) -> Option<u32> {
        self.running().ok()?.process.pid()
    }

    async fn identity(&self) -> Result<VmmIdentity> {
        Ok(VmmIdentity {
            name: "qemu".into(),
            version: self.qemu.version.clone(),
            accelerator: self.qemu.accelerator.name().into(),
            cpu: self.qemu.cpu(),
            machine: self.qemu.machine_type(),
        })
    }

    fn console_tail(&self) -> String {
        console::tail_of(&console::path(&self.machine.dir))
    }
}
