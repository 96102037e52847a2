//! Containers: made, run and removed by the RPC layer (`rpc`), which owns their map and never holds a lock
//! across one of these calls. What happens inside the new namespaces is in `helper`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use agent_proto::agent::CgroupStats;
use agent_proto::oci;

use crate::error::{Error, Kind, Result};
use crate::reaper::Reaper;

/// The first argument that makes the agent's binary a helper instead of PID 1; `main.rs` looks at it first.
pub const HELPER: &str = "container-helper";

/// The helper's `main`: sets up one container or one more process in it, and becomes that process.
/// `main.rs` calls it before it starts a thread or a runtime: a threaded process cannot fork safely.
pub fn helper_main(_args: impl Iterator<Item = OsString>) -> i32 {
    1
}

/// What all containers of this agent share.
#[derive(Debug)]
pub struct Runtime;

impl Runtime {
    /// `cgroups`: where cgroup2 is mounted (`/sys/fs/cgroup` in the guest); groups are made in `microvm/` below it.
    /// `helper`: the agent's binary (`/proc/self/exe`).
    ///
    /// # Errors
    /// If `cgroups` is no cgroup2 or the group of all containers cannot be made.
    pub fn new(_reaper: Arc<Reaper>, _cgroups: PathBuf, _helper: PathBuf) -> Result<Arc<Self>> {
        Ok(Arc::new(Self))
    }

    /// The id of the next container in which the kernel killed a process for want of memory. No deadline; may be
    /// cancelled without losing an event; one caller at a time gets each event.
    pub async fn oom(&self) -> String {
        std::future::pending().await
    }
}

/// Namespaces of the sandbox that a container joins, as files; `None` is a new one where the spec lists its
/// type (`pid`: always a new one).
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    /// Shared System V and POSIX IPC.
    pub ipc: Option<PathBuf>,
    /// The shared hostname.
    pub uts: Option<PathBuf>,
    /// The shared pid namespace, if the sandbox has one.
    pub pid: Option<PathBuf>,
}

/// What a container is made of.
#[derive(Debug)]
pub struct CreateSpec {
    /// Its id: a file name.
    pub id: String,
    /// What to run and how. Paths of bind mounts are guest paths. Namespace types without a path are new, with a path joined;
    /// user and time namespaces are refused. cgroupsPath is ignored.
    pub spec: oci::Spec,
    /// Its root file system, mounted and writable.
    pub root: PathBuf,
    /// Namespaces of the sandbox it joins.
    pub namespaces: Namespaces,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Set up, the program not started.
    Created,
    /// The program runs.
    Running,
    /// All processes of the container are frozen.
    Paused,
    /// Ended with this code (128 + signal).
    Stopped(i32),
}

/// A container. All methods may be called at once from many tasks, none waits for another call than its own; an `exec_id` of "" or
/// the container's id is its first process. A call dropped half-way goes on to its end (create, start, exec, pause,
/// resume, update, remove) or has no effect (reads and waits).
#[derive(Debug)]
pub struct Container;

impl Container {
    /// Sets all up but the program itself; [`Container::start`] runs it. Deadline 60 s. Nothing is left on failure.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] for a spec that cannot be carried out, else the step that failed with its causes.
    pub async fn create(_runtime: &Arc<Runtime>, spec: CreateSpec) -> Result<Arc<Self>> {
        Err(Error::new(Kind::Unimplemented, format!("Could not create container {}", spec.id)))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        ""
    }

    /// The state of one process, at once.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown process.
    pub fn state(&self, _exec_id: &str) -> Result<State> {
        Ok(State::Created)
    }

    /// Runs the program. Answers when it has replaced the helper (execve succeeded). Deadline 60 s beyond those of the hooks.
    ///
    /// # Errors
    /// The program's absence ("executable file not found in $PATH"), a failed hook; the container has ended then.
    pub async fn start(&self) -> Result<()> {
        Ok(())
    }

    /// Runs one more process. Answers when execve succeeded. Deadline 60 s.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`] if a process with this id runs; [`Kind::FailedPrecondition`] if the container does not run.
    pub async fn exec(&self, _exec_id: &str, _process: oci::Process) -> Result<()> {
        Ok(())
    }

    /// Sends a signal; SIGKILL to the first process goes to all processes of the container. At once.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown or ended process.
    pub fn signal(&self, _exec_id: &str, _signal: i32) -> Result<()> {
        Ok(())
    }

    /// Waits for the end of a process: its exit code, or 128 + signal. No deadline; many waiters.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown process.
    pub async fn wait(&self, _exec_id: &str) -> Result<i32> {
        Ok(0)
    }

    /// Freezes all processes. Answers when they stand still; deadline 10 s, then thawed again.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the container does not run.
    pub async fn pause(&self) -> Result<()> {
        Ok(())
    }

    /// Thaws all processes.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the container is not paused.
    pub async fn resume(&self) -> Result<()> {
        Ok(())
    }

    /// What its cgroup has used.
    ///
    /// # Errors
    /// If the cgroup cannot be read.
    pub fn stats(&self) -> Result<CgroupStats> {
        Ok(CgroupStats::new())
    }

    /// Changes the limits that `resources` names.
    ///
    /// # Errors
    /// A limit the kernel refuses. One it does not know is skipped with a warning.
    pub async fn update(&self, _resources: oci::LinuxResources) -> Result<()> {
        Ok(())
    }

    /// Kills what runs, removes the cgroup. The caller unmounts the root file system. Deadline 10 s.
    ///
    /// # Errors
    /// If a process outlives SIGKILL until the deadline.
    pub async fn remove(&self) -> Result<()> {
        Ok(())
    }

    /// Writes all of `data` to the process's standard input; waits while its pipe is full. No deadline.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if it is closed.
    pub async fn write_stdin(&self, _exec_id: &str, _data: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Closes the standard input once the write in flight, if any, is done. At once; without effect on a terminal.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown process.
    pub fn close_stdin(&self, _exec_id: &str) -> Result<()> {
        Ok(())
    }

    /// Waits for output and answers at most `len` bytes and 32 KiB of it; empty at its end. No deadline. Dropping
    /// the call loses nothing. With a terminal all output is here.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown process.
    pub async fn read_stdout(&self, _exec_id: &str, _len: usize) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// As [`Container::read_stdout`]; empty at once with a terminal.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for an unknown process.
    pub async fn read_stderr(&self, _exec_id: &str, _len: usize) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if it has none.
    pub fn resize(&self, _exec_id: &str, _rows: u16, _columns: u16) -> Result<()> {
        Ok(())
    }
}
