//! The host process that stands for a task: the pid we report. It runs nothing; it is there so that `/proc/<pid>`
//! shows the task's host cgroup and the pod's network namespace, and nothing of the host's files. One for each
//! container and exec, made by `container` and `sandbox`, gone when the task is or when the shim is.

mod process;

use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

pub use process::main;

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// `argv[1]` that makes our binary a stub.
pub const MODE: &str = "stub";
/// Exec, a handful of system calls: milliseconds, unless the host is drowning.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// SIGKILL acts at once on a process that sleeps in a read.
const DEATH_LIMIT: Duration = Duration::from_secs(2);
/// What the stub says when it is in place; anything else is an error text.
const READY: &str = "ready";

/// The network namespace of a stub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Net {
    /// The shim's.
    #[default]
    Host,
    /// The one at this path.
    Join(PathBuf),
    /// A new one, for a sandbox that was given none: `/proc/<pid>/ns/net` while the stub lives.
    New,
}

/// Where a stub goes.
#[derive(Debug, Clone)]
pub struct Place {
    /// `cgroup.procs` files that it writes itself into.
    pub cgroup_procs: Vec<PathBuf>,
    /// Its network namespace.
    pub net: Net,
    /// Our binary.
    pub program: PathBuf,
}

impl Default for Place {
    /// The shim's own place.
    fn default() -> Self {
        Place { cgroup_procs: Vec::new(), net: Net::default(), program: "/proc/self/exe".into() }
    }
}

/// A running stub. When dropped without [`Stub::end`] it ends too, a little later.
#[derive(Debug)]
pub struct Stub {
    pid: u32,
    resource: Resource,
    ledger: Arc<Ledger>,
    /// The stub ends when it reads the end of file here.
    _alive: UnixStream,
    kill: Mutex<Option<oneshot::Sender<()>>>,
    ended: watch::Receiver<bool>,
}

impl Stub {
    /// Starts a stub and waits until it is in its place.
    ///
    /// # Errors
    /// With the stub's own words when it could not get there, `DeadlineExceeded` after ten seconds. It is dead then.
    pub async fn spawn(place: &Place, ledger: &Arc<Ledger>) -> Result<Self> {
        let (ours, theirs) = StdUnixStream::pair().context(|| "Could not make a socket for a stub".into())?;
        let mut child = Command::new(&place.program)
            .arg0(process::COMM)
            .arg(MODE)
            .args(process::arguments(place))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context(|| format!("Could not start a stub from {}", place.program.display()))?;
        let mut alive =
            ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours)).context(socket_failed)?;
        match timeout(READY_LIMIT, answer(&mut alive)).await {
            Ok(answered) => answered?,
            Err(_) => {
                let text = format!("A stub was not in its place within {} s", READY_LIMIT.as_secs());
                return Err(Error::new(Kind::DeadlineExceeded, text));
            }
        }
        let pid =
            child.id().ok_or_else(|| Error::new(Kind::Internal, "A stub ended as soon as it had started"))?;
        let resource = Resource::process(pid, "stub of a task")?;
        ledger.claim(resource.clone())?;
        let (kill, killed) = oneshot::channel();
        let (end, ended) = watch::channel(false);
        tokio::spawn(async move {
            attend(&mut child, killed).await;
            end.send_replace(true);
        });
        let kill = Mutex::new(Some(kill));
        Ok(Stub { pid, resource, ledger: ledger.clone(), _alive: alive, kill, ended })
    }

    /// The pid to report.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the stub is dead, by [`Stub::end`] or because somebody killed the pid that we reported.
    pub async fn ended(&self) {
        // An error means that the attending task is gone, and the child with it.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Kills the stub and waits until it is collected. Nothing happens if it is dead.
    ///
    /// # Errors
    /// `DeadlineExceeded` if it lives on for two seconds.
    pub async fn end(&self) -> Result<()> {
        if let Some(kill) = self.kill.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = kill.send(());
        }
        let late = |_| {
            let text = format!("Stub {} did not end within {} s", self.pid, DEATH_LIMIT.as_secs());
            Error::new(Kind::DeadlineExceeded, text)
        };
        timeout(DEATH_LIMIT, self.ended()).await.map_err(late)?;
        self.ledger.forget(&self.resource)
    }
}

/// Collects the child whenever it ends, and kills it when asked to, or when nobody could ask any more.
async fn attend(child: &mut Child, killed: oneshot::Receiver<()>) {
    let ended = tokio::select! {
        ended = child.wait() => ended.map(drop),
        _ = killed => child.kill().await,
    };
    if let Err(error) = ended {
        log::warn!("Could not collect a stub: {error}");
    }
}

async fn answer(stub: &mut UnixStream) -> Result<()> {
    let mut text = Vec::new();
    let mut part = [0; 512];
    loop {
        let count = stub.read(&mut part).await.context(socket_failed)?;
        text.extend_from_slice(&part[..count]);
        if text == READY.as_bytes() {
            return Ok(());
        }
        // The stub ends after an error, so the error ends at the end of file.
        if count == 0 {
            let words = String::from_utf8_lossy(&text);
            let words = if words.is_empty() { "it ended without a word" } else { words.as_ref() };
            return Err(Error::new(Kind::Internal, format!("Could not put a stub in its place: {words}")));
        }
    }
}

fn socket_failed() -> String {
    "Could not talk to a stub".into()
}
