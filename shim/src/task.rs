//! What `service` and the sandbox say to each other: plain requests and answers of the Task API, without
//! protobuf and without a word about VMs.

use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use oci_spec::runtime::{LinuxResources, Process};

use crate::config::Source;
use crate::error::Result;

/// One of the mounts that containerd's snapshotter prepared for a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `overlay`, `bind`, `erofs`, …
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Place below the root filesystem; empty for the root itself.
    pub target: String,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
}

/// Where a process's standard streams go on the host: fifo paths or logger URIs; empty means none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: String,
    /// Standard output; the terminal's output if `terminal`.
    pub stdout: String,
    /// Standard error; empty if `terminal`.
    pub stderr: String,
    /// Whether the process gets a pseudo-terminal.
    pub terminal: bool,
}

/// Names a process: a container's first one, or one that was added by exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessRef<'a> {
    /// Container.
    pub container: &'a str,
    /// Exec id; empty for the container's first process.
    pub exec: &'a str,
}

/// Request to create a container.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// Container.
    pub id: String,
    /// Directory with `config.json`.
    pub bundle: PathBuf,
    /// Mounts of the root filesystem; empty when it is mounted already.
    pub rootfs: Vec<Mount>,
    /// Standard streams.
    pub streams: Streams,
    /// Snapshot to restore the container from; empty for a fresh start.
    pub checkpoint: String,
    /// Where the config comes from: `config::Source::from_options` of the request's options.
    pub config: Source,
}

/// Request to register another process of a container.
#[derive(Debug, Clone)]
pub struct Exec {
    /// Container.
    pub id: String,
    /// Name of the process within the container.
    pub exec: String,
    /// What to run.
    pub process: Process,
    /// Standard streams.
    pub streams: Streams,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Exists, runs nothing.
    Created,
    /// Runs.
    Running,
    /// Is being frozen.
    Pausing,
    /// Is frozen.
    Paused,
    /// Has ended.
    Stopped,
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, 128 + n after signal n.
    pub status: u32,
    /// When the shim learned of it.
    pub at: SystemTime,
}

/// Everything that the shim knows about a process without asking the guest.
#[derive(Debug, Clone)]
pub struct State {
    /// Container.
    pub id: String,
    /// Exec id; empty for the container's first process.
    pub exec: String,
    /// The container's bundle.
    pub bundle: PathBuf,
    /// Host process that stands for this one.
    pub pid: u32,
    /// Where it is in its life.
    pub status: Status,
    /// Standard streams.
    pub streams: Streams,
    /// Set once it has ended.
    pub exit: Option<Exit>,
}

/// What remains of a deleted process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Host process that stood for it.
    pub pid: u32,
    /// How it ended.
    pub exit: Exit,
}

/// One host process that stands for a process of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pid {
    /// Host process id.
    pub pid: u32,
    /// Its exec id; none for the container's first process.
    pub exec: Option<String>,
}

/// Processes behind a container, for containerd's re-adoption of a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connected {
    /// This shim.
    pub shim: u32,
    /// The container's host process; 0 if the container is unknown.
    pub task: u32,
}

/// Statistics of a container, ready to send: a message of `io.containerd.cgroups.v2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Bare name of the message's type.
    pub type_url: String,
    /// The message.
    pub value: Vec<u8>,
}

/// The Task API as the sandbox serves it. Every method may run at the same time as every other; none but `wait`
/// is without a deadline, and none of `state`, `pids`, `connect` and `wait` asks the guest.
#[async_trait]
pub trait Tasks: Send + Sync + 'static {
    /// Creates a container and answers its pid; nothing is left behind when that fails.
    async fn create(&self, request: Create) -> Result<u32>;
    /// Starts a created process and answers its pid.
    async fn start(&self, process: ProcessRef<'_>) -> Result<u32>;
    /// Registers another process of a running container.
    async fn exec(&self, request: Exec) -> Result<()>;
    /// What is known about a process.
    async fn state(&self, process: ProcessRef<'_>) -> Result<State>;
    /// Sends a signal to a process, or to all of the container.
    async fn kill(&self, process: ProcessRef<'_>, signal: u32, all: bool) -> Result<()>;
    /// Waits until a process has ended, or answers at once if it has.
    async fn wait(&self, process: ProcessRef<'_>) -> Result<Exit>;
    /// Forgets an ended process.
    async fn delete(&self, process: ProcessRef<'_>) -> Result<Deleted>;
    /// Host processes that stand for the container's.
    async fn pids(&self, id: &str) -> Result<Vec<Pid>>;
    /// Freezes a container.
    async fn pause(&self, id: &str) -> Result<()>;
    /// Thaws a container.
    async fn resume(&self, id: &str) -> Result<()>;
    /// Captures the whole pod into the directory `path`; ends it afterwards if `exit`.
    async fn checkpoint(&self, id: &str, path: PathBuf, exit: bool) -> Result<()>;
    /// Changes a container's limits.
    async fn update(&self, id: &str, resources: LinuxResources) -> Result<()>;
    /// A container's statistics.
    async fn stats(&self, id: &str) -> Result<Stats>;
    /// Sets the size of a process's terminal; nothing happens without one.
    async fn resize(&self, process: ProcessRef<'_>, width: u16, height: u16) -> Result<()>;
    /// Closes a process's standard input once everything written so far has been passed on.
    async fn close_stdin(&self, process: ProcessRef<'_>) -> Result<()>;
    /// Processes behind a container.
    async fn connect(&self, id: &str) -> Result<Connected>;
    /// Whether nothing is left to serve: the shim may end now.
    async fn shutdown(&self) -> Result<bool>;
}
