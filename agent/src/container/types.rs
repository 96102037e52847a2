//! What the callers of `container` hand in and get back.

use std::path::PathBuf;

use agent_proto::oci;

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
