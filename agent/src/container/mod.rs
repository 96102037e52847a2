//! Containers: made, run and removed by the RPC layer (`rpc`), which owns their map and never holds a lock
//! across one of these calls. What happens inside the new namespaces is in `helper`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::agent::CgroupStats;
use agent_proto::oci;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cgroup::{Cgroup, Hierarchy};
use crate::error::{Context as _, Error, Kind, Result};
use crate::reaper::Reaper;

mod create;
mod helper;
mod io;
mod link;
mod plan;
mod process;
mod rebind;
mod run;
mod spawn;
mod types;

use link::AgentEnd;
use process::{Execs, Found, Process};
pub use types::{CreateSpec, Namespaces, State};

/// The first argument that makes the agent's binary a helper instead of PID 1; `main.rs` looks at it first.
pub const HELPER: &str = "container-helper";

/// How long a helper may take, hooks not counted. Emulated machines are slow, but nothing it does waits for others.
const DEADLINE: Duration = Duration::from_secs(60);

/// The helper's `main`: sets up one container or one more process in it, and becomes that process.
/// `main.rs` calls it before it starts a thread or a runtime: a threaded process cannot fork safely.
pub fn helper_main(args: impl Iterator<Item = OsString>) -> i32 {
    helper::main(args)
}

/// What all containers of this agent share.
#[derive(Debug)]
pub struct Runtime {
    reaper: Arc<Reaper>,
    cgroups: Hierarchy,
    helper: PathBuf,
    oom_sender: UnboundedSender<String>,
    oom_receiver: tokio::sync::Mutex<UnboundedReceiver<String>>,
}

impl Runtime {
    /// `cgroups`: where cgroup2 is mounted (`/sys/fs/cgroup` in the guest); groups are made in `microvm/` below it.
    /// `helper`: the agent's binary (`/proc/self/exe`).
    ///
    /// # Errors
    /// If `cgroups` is no cgroup2 or the group of all containers cannot be made.
    pub fn new(reaper: Arc<Reaper>, cgroups: &Path, helper: PathBuf) -> Result<Arc<Self>> {
        let (oom_sender, receiver) = unbounded_channel();
        let oom_receiver = tokio::sync::Mutex::new(receiver);
        Ok(Arc::new(Self { reaper, cgroups: Hierarchy::open(cgroups)?, helper, oom_sender, oom_receiver }))
    }

    /// The id of the next container in which the kernel killed a process for want of memory. No deadline; may be
    /// cancelled without losing an event; each event goes to one caller.
    pub async fn oom(&self) -> String {
        let mut receiver = self.oom_receiver.lock().await;
        match receiver.recv().await {
            Some(id) => id,
            // Can't be: this runtime holds a sender.
            None => std::future::pending().await,
        }
    }
}

/// A container. All methods may be called at once from many tasks, none waits for another call than its own; an `exec_id` of "" or
/// the container's id is its first process. A call dropped half-way goes on to its end (create, start, exec, pause,
/// resume, update, remove) or has no effect (reads and waits).
#[derive(Debug)]
pub struct Container {
    id: String,
    runtime: Arc<Runtime>,
    cgroup: Cgroup,
    init: Arc<Process>,
    /// Every exec'd process gets it as well.
    filter: Option<plan::Filter>,
    start_deadline: Duration,
    /// Never held across a wait.
    phase: Mutex<Phase>,
    /// Never held across a wait.
    execs: Mutex<Execs>,
    /// Held while the kernel freezes or thaws, so that two calls do not undo each other. No other call takes it.
    freezing: tokio::sync::Mutex<()>,
    paused: AtomicBool,
    /// Gone with the container, for tasks that must go too.
    alive: tokio::sync::watch::Sender<()>,
}

#[derive(Debug)]
enum Phase {
    /// The first process waits at the other end of the link.
    Created(AgentEnd),
    /// Told to go; whether its program runs is not known yet.
    Starting,
    Running,
}

impl Container {
    /// Sets all up but the program itself; [`Container::start`] runs it. Deadline 60 s beyond those of the hooks. Nothing is left
    /// on failure, nor if the caller goes away before the answer.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a spec that cannot be carried out, else the step that failed with its causes.
    pub async fn create(runtime: &Arc<Runtime>, spec: CreateSpec) -> Result<Arc<Self>> {
        let failed = format!("Could not create container {}", spec.id);
        create::create(runtime, spec).await.map_err(|error| Error::caused(error.kind(), failed, error))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its cgroup's directory.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The pid of its first process in the agent's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.init.child.pid()
    }

    /// The state of one process, at once.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown process.
    pub fn state(&self, exec_id: &str) -> Result<State> {
        let process = match self.find(exec_id)? {
            Found::Process(process) => process,
            Found::Code(code) => return Ok(State::Stopped(code)),
        };
        if let Some(status) = process.child.exit() {
            return Ok(State::Stopped(status.code()));
        }
        if self.is_init(exec_id) && matches!(*self.phase(), Phase::Created(_)) {
            return Ok(State::Created);
        }
        Ok(if self.paused.load(Ordering::Acquire) { State::Paused } else { State::Running })
    }

    /// Runs the program. Answers when it has replaced the helper (execve succeeded). Deadline 60 s beyond those of the hooks.
    ///
    /// # Errors
    /// The program's absence ("executable file not found in $PATH"), a failed hook; the container has ended then.
    /// [`Kind::FailedPrecondition`] if it was started before.
    pub async fn start(self: &Arc<Self>) -> Result<()> {
        let container = self.clone();
        detached(async move { run::start(&container).await }).await
    }

    /// Runs one more process. Answers when execve succeeded. Deadline 60 s.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`] if a process with this id runs; [`Kind::FailedPrecondition`] if the container does not run.
    pub async fn exec(self: &Arc<Self>, exec_id: &str, process: oci::Process) -> Result<()> {
        let (container, exec_id) = (self.clone(), exec_id.to_owned());
        detached(async move { run::exec(&container, &exec_id, &process).await }).await
    }

    /// Sends a signal; SIGKILL to the first process goes to all processes of the container. At once.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown or ended process.
    pub fn signal(&self, exec_id: &str, signal: i32) -> Result<()> {
        let process = self.running(exec_id)?;
        process.child.signal(signal)?;
        if signal == libc::SIGKILL && self.is_init(exec_id) { self.cgroup.kill() } else { Ok(()) }
    }

    /// Waits for the end of a process: its exit code, or 128 + signal. No deadline; many waiters.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown process.
    pub async fn wait(&self, exec_id: &str) -> Result<i32> {
        let process = match self.find(exec_id)? {
            Found::Process(process) => process,
            Found::Code(code) => return Ok(code),
        };
        let code = process.wait().await;
        self.execs().retire(exec_id);
        Ok(code)
    }

    /// Freezes all processes. Answers when they stand still; deadline 10 s, then thawed again. Paused already is success.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the container does not run.
    pub async fn pause(self: &Arc<Self>) -> Result<()> {
        let container = self.clone();
        let pause = async move {
            let _turn = container.freezing.lock().await;
            match container.state("")? {
                State::Paused => Ok(()),
                State::Running => {
                    container.paused.store(true, Ordering::Release);
                    let frozen = container.cgroup.freeze().await;
                    container.paused.store(frozen.is_ok(), Ordering::Release);
                    frozen
                }
                state @ (State::Created | State::Stopped(_)) => {
                    Err(wrong_state(&container.id, "paused", state))
                }
            }
        };
        detached(pause).await
    }

    /// Thaws all processes. Not paused is success.
    ///
    /// # Errors
    /// If the kernel does not thaw them within 10 s.
    pub async fn resume(self: &Arc<Self>) -> Result<()> {
        let container = self.clone();
        let resume = async move {
            let _turn = container.freezing.lock().await;
            if container.paused.load(Ordering::Acquire) {
                container.cgroup.thaw().await?;
                container.paused.store(false, Ordering::Release);
            }
            Ok(())
        };
        detached(resume).await
    }

    /// What its cgroup has used.
    ///
    /// # Errors
    /// If the cgroup cannot be read.
    pub fn stats(&self) -> Result<CgroupStats> {
        self.cgroup.stats()
    }

    /// Changes the limits that `resources` names. Lowering memory below what is used may take as long as the kernel needs to
    /// reclaim it.
    ///
    /// # Errors
    /// A limit the kernel refuses. One it does not know is skipped with a warning.
    pub async fn update(self: &Arc<Self>, resources: oci::LinuxResources) -> Result<()> {
        let container = self.clone();
        let update = tokio::task::spawn_blocking(move || container.cgroup.limit(&resources));
        update.await.context(|| "An update was cut off")?
    }

    /// Kills what runs, removes the cgroup. The caller unmounts the root file system. Deadline 10 s. Gone already is success.
    ///
    /// # Errors
    /// If a process outlives SIGKILL until the deadline.
    pub async fn remove(self: &Arc<Self>) -> Result<()> {
        let container = self.clone();
        detached(async move { container.cgroup.remove().await }).await
    }

    fn is_init(&self, exec_id: &str) -> bool {
        exec_id.is_empty() || exec_id == self.id
    }

    fn find(&self, exec_id: &str) -> Result<Found> {
        if self.is_init(exec_id) { Ok(Found::Process(self.init.clone())) } else { self.execs().find(exec_id) }
    }

    /// A process that has its streams still.
    fn running(&self, exec_id: &str) -> Result<Arc<Process>> {
        match self.find(exec_id)? {
            Found::Process(process) => Ok(process),
            Found::Code(_) => {
                Err(Error::new(Kind::NotFound, format!("Process {exec_id:?} has ended already")))
            }
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execs(&self) -> MutexGuard<'_, Execs> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes on when the caller goes away.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.context(|| "A call was cut off")?
}

fn too_late(what: &str, deadline: Duration) -> Error {
    Error::new(Kind::DeadlineExceeded, format!("{what} within {} s", deadline.as_secs()))
}

fn wrong_state(id: &str, verb: &str, state: State) -> Error {
    Error::new(Kind::FailedPrecondition, format!("Container {id} cannot be {verb}: it is {state:?}"))
}
