//! A VMM that runs nothing: its guest is the scripted agent in this process. Snapshots are real files, so that a restore
//! goes the real way.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::agent::Guest;
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::Ledger;
use crate::vm::{Death, Machine, Vm, Vmm, VmmIdentity};

/// Name of the device state's file.
const STATE: &str = "state";

/// What goes wrong in the next machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The VMM can't be started.
    Boot,
    /// The guest's agent does not answer.
    Agent,
    /// The device state can't be written.
    Save,
    /// The device state can't be loaded.
    Restore,
}

/// Makes scripted machines, and lets the test reach into them.
#[derive(Debug, Default)]
pub struct ScriptedVmm {
    fault: Mutex<Fault>,
    machines: Mutex<Vec<Arc<ScriptedVm>>>,
}

impl ScriptedVmm {
    /// Has machines made from now on fail.
    pub fn fail(&self, fault: Fault) {
        *lock(&self.fault) = fault;
    }

    /// Kills the newest machine, as the kernel would.
    pub fn kill(&self) {
        if let Some(machine) = lock(&self.machines).last() {
            machine.die("signal 9");
        }
    }

    /// The guest of the newest machine.
    ///
    /// # Panics
    /// Without a machine.
    #[must_use]
    pub fn guest(&self) -> Arc<Guest> {
        let machines = lock(&self.machines);
        let guest = machines.last().map(|machine| lock(&machine.guest).clone());
        #[allow(clippy::expect_used)] // A test that asks too early is wrong.
        guest.expect("no machine was made yet")
    }

    /// What was asked of all machines, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        lock(&self.machines).iter().flat_map(|machine| lock(&machine.log).clone()).collect()
    }
}

impl Vmm for ScriptedVmm {
    fn machine(&self, machine: Machine, _: &Arc<Ledger>) -> Arc<dyn Vm> {
        let made = Arc::new(ScriptedVm {
            machine,
            fault: *lock(&self.fault),
            guest: Mutex::default(),
            server: tokio::sync::Mutex::default(),
            death: watch::Sender::new(None),
            log: Mutex::default(),
        });
        lock(&self.machines).push(made.clone());
        made
    }
}

#[derive(Debug)]
struct ScriptedVm {
    machine: Machine,
    fault: Fault,
    guest: Mutex<Arc<Guest>>,
    server: tokio::sync::Mutex<Option<super::server::Server>>,
    death: watch::Sender<Option<Death>>,
    log: Mutex<Vec<String>>,
}

impl ScriptedVm {
    fn note(&self, what: &str) {
        lock(&self.log).push(what.into());
    }

    fn die(&self, status: &str) {
        lock(&self.guest).die();
        self.death.send_if_modified(|death| {
            let first = death.is_none();
            *death = Some(Death { status: status.into(), last_words: "scripted".into() });
            first
        });
    }

    async fn serve(&self) -> Result<()> {
        let guest = lock(&self.guest).clone();
        *self.server.lock().await = Some(super::server::Server::start(&self.machine.dir, guest).await?);
        Ok(())
    }
}

#[async_trait]
impl Vm for ScriptedVm {
    async fn boot(&self) -> Result<()> {
        self.note("boot");
        if self.fault == Fault::Boot {
            return Err(Error::new(Kind::Unavailable, "The VMM ended with exit status 1: scripted"));
        }
        self.serve().await
    }

    async fn restore(&self, dir: &Path) -> Result<()> {
        self.note("restore");
        if self.fault == Fault::Restore {
            return Err(Error::new(Kind::Internal, "The device state is of another machine"));
        }
        let text = std::fs::read(dir.join(STATE)).context(|| "Could not read the device state".into())?;
        *lock(&self.guest) = Arc::new(Guest::parse(&text)?);
        self.serve().await
    }

    async fn pause(&self) -> Result<()> {
        self.note("pause");
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.note("resume");
        Ok(())
    }

    async fn save(&self, dir: &Path) -> Result<Vec<String>> {
        self.note("save");
        if self.fault == Fault::Save {
            return Err(Error::new(Kind::ResourceExhausted, "No space left for the device state"));
        }
        let text = lock(&self.guest).render()?;
        std::fs::write(dir.join(STATE), text).context(|| "Could not write the device state".into())?;
        Ok(vec![STATE.into()])
    }

    async fn connect_agent(&self, deadline: Duration) -> Result<UnixStream> {
        self.note("connect");
        if self.fault == Fault::Agent {
            let text = format!("The guest's agent did not answer within {deadline:?}");
            return Err(Error::new(Kind::DeadlineExceeded, text));
        }
        let socket = super::server::socket(&self.machine.dir);
        UnixStream::connect(&socket).await.context(|| "Could not connect to the scripted agent".into())
    }

    async fn stop(&self) -> Result<()> {
        self.note("stop");
        self.die("signal 9");
        if let Some(server) = self.server.lock().await.take() {
            server.stop();
        }
        Ok(())
    }

    fn death(&self) -> watch::Receiver<Option<Death>> {
        self.death.subscribe()
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    async fn identity(&self) -> Result<VmmIdentity> {
        Ok(VmmIdentity {
            name: "qemu".into(),
            version: "11.1.2".into(),
            accelerator: "tcg".into(),
            cpu: "max".into(),
            machine: "pc-q35-11.1".into(),
        })
    }

    fn console_tail(&self) -> String {
        "scripted console".into()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
