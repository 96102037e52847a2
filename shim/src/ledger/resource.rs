//! What a sandbox can own on the host, as `sandbox.json` records it. Made by whoever makes the thing itself.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{process, undo};
use crate::error::Result;

/// One thing on the host that must be gone after the sandbox. Two resources are the same if all fields are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// A directory with all that is in it, up to mounts below it. Undoing fails at such a mount.
    Directory(PathBuf),
    /// A file, socket, fifo or symbolic link.
    File(PathBuf),
    /// All mounts stacked on this path.
    Mount(PathBuf),
    /// A cgroup directory with all processes and cgroups in it.
    Cgroup(PathBuf),
    /// A process that is no child of a cgroup claimed here, or should end before it.
    Process {
        /// Its process id.
        pid: u32,
        /// Its start time, see [`super::start_time`].
        start_time: u64,
        /// What it is, for error texts: `virtiofsd for images`.
        what: String,
    },
    /// A tap device.
    Tap {
        /// Path of the network namespace it is in.
        netns: PathBuf,
        /// Its name.
        name: String,
    },
    /// The ingress filter that sends a device's packets elsewhere.
    Redirect {
        /// Path of the network namespace it is in.
        netns: PathBuf,
        /// Device that the filter is on.
        device: String,
    },
    /// A network namespace, bound to this path.
    Netns(PathBuf),
    /// A lease on containerd's content and snapshots.
    Lease {
        /// containerd's gRPC socket.
        address: PathBuf,
        /// containerd's namespace.
        namespace: String,
        /// Id of the lease.
        id: String,
    },
    /// A directory that was empty before a snapshot was begun in it. Undoing empties it, unless the snapshot is whole.
    Snapshot(PathBuf),
    /// A hook of the OCI spec that must run once the container is gone.
    Poststop(Poststop),
}

/// A poststop hook. Its failure is logged and forgiven, as the OCI runtime specification says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poststop {
    /// Executable on the host.
    pub path: PathBuf,
    /// Arguments, the program's name first. Empty: the path.
    pub args: Vec<String>,
    /// Environment as `NAME=value`, nothing else is added.
    pub env: Vec<String>,
    /// Killed after so many seconds.
    pub timeout: u32,
    /// The container's state, JSON, for its stdin.
    pub state: String,
}

impl Resource {
    /// The running process `pid`, called `what` in error texts.
    ///
    /// # Errors
    /// `NotFound` if there is no such process.
    pub fn process(pid: u32, what: impl Into<String>) -> Result<Self> {
        Ok(Resource::Process { pid, start_time: process::start_time(pid)?, what: what.into() })
    }

    /// Undoes it without a ledger: for what lies within a resource that is claimed.
    ///
    /// # Errors
    /// If it can't be undone. One that is gone already is a success.
    pub fn undo(&self) -> Result<()> {
        undo::undo(self)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Directory(path) => write!(f, "directory {}", path.display()),
            Resource::File(path) => write!(f, "file {}", path.display()),
            Resource::Mount(path) => write!(f, "mount {}", path.display()),
            Resource::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Resource::Process { pid, what, .. } => write!(f, "process {pid} ({what})"),
            Resource::Tap { netns, name } => write!(f, "tap {name} in {}", netns.display()),
            Resource::Redirect { netns, device } => write!(f, "redirect of {device} in {}", netns.display()),
            Resource::Netns(path) => write!(f, "network namespace {}", path.display()),
            Resource::Lease { namespace, id, .. } => write!(f, "lease {id} in namespace {namespace}"),
            Resource::Snapshot(path) => write!(f, "unfinished snapshot in {}", path.display()),
            Resource::Poststop(hook) => write!(f, "poststop hook {}", hook.path.display()),
        }
    }
}
