//! A container as the sandbox keeps it: what containerd gave, what stands for it on the host, its processes. One file
//! for each operation; `sandbox` finds the container and calls them, in one of two halves: what is done on the host
//! needs no VM, what is done in the guest needs a running one.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod freeze;
mod hooks;
pub(crate) mod kill;
mod life;
mod process;
mod rootfs;
pub(crate) mod start;
pub(crate) mod tune;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use oci_spec::runtime::{LinuxResources, Spec};

pub(crate) use life::Ask;
pub(crate) use process::{KILLED, Process};

use crate::cgroup::ContainerCgroup;
use crate::error::{Error, Kind, Result};
use crate::guest::GuestName;
use crate::guest::spec::{GuestPids, Workload};
use crate::sandbox::facts::Role;
use crate::task::{ProcessRef, Stats};
use hooks::About;
use process::lock;

/// A container's place in the guest.
#[derive(Debug)]
pub(crate) struct InGuest {
    /// Its stable name.
    pub(crate) name: GuestName,
    /// Which container of this name it is: part of its image's place in the share.
    pub(crate) generation: u32,
    /// The same for its volumes; another number if it came with a snapshot.
    pub(crate) volumes: u32,
    /// What the agent is asked to run.
    pub(crate) workload: Workload,
    /// Whose processes it sees; of no consequence for one that came with a snapshot.
    pub(crate) pids: GuestPids,
    /// How it comes into the guest.
    pub(crate) origin: Origin,
}

/// How a container comes into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is made there.
    New,
    /// It came with a snapshot, in which it had not been started.
    Created,
    /// It came with a snapshot, in which it ran; it is frozen until its start.
    Frozen,
}

/// A container; the sandbox's own (CRI's pause container) has no place in the guest.
#[derive(Debug)]
pub(crate) struct Container {
    /// containerd's id.
    pub(crate) id: String,
    /// Directory with `config.json` and `rootfs/`.
    pub(crate) bundle: PathBuf,
    /// `config.json`.
    pub(crate) spec: Spec,
    /// Which part of the pod it is.
    pub(crate) role: Role,
    /// Its place in the guest.
    pub(crate) guest: Option<InGuest>,
    /// Its first process.
    pub(crate) init: Arc<Process>,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
    cgroup: Mutex<Option<Arc<ContainerCgroup>>>,
    /// Agent's ids of the containers that a pause of the sandbox froze.
    frozen: Mutex<Vec<String>>,
    /// Limits that were changed before the guest knew the container.
    waiting_update: Mutex<Option<LinuxResources>>,
    last_stats: Mutex<Option<Stats>>,
}

impl Container {
    /// A container that holds nothing on the host yet.
    pub(crate) fn new(request: &crate::task::Create, spec: Spec, role: Role, guest: Option<InGuest>) -> Self {
        Container {
            init: Arc::new(Process::new(&request.id, "", request.streams.clone())),
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            spec,
            role,
            guest,
            execs: Mutex::default(),
            cgroup: Mutex::default(),
            frozen: Mutex::default(),
            waiting_update: Mutex::default(),
            last_stats: Mutex::default(),
        }
    }

    /// Its place in the guest.
    ///
    /// # Errors
    /// `Unimplemented` for CRI's pause container: no process of it runs in the guest.
    pub(crate) fn in_guest(&self) -> Result<&InGuest> {
        self.guest.as_ref().ok_or_else(|| {
            let text = format!("Container {} is the sandbox itself, it has no process in the guest", self.id);
            Error::new(Kind::Unimplemented, text)
        })
    }

    /// Its name in the pod's manifest; none without CRI.
    pub(crate) fn cri_name(&self) -> Option<&str> {
        match &self.role {
            Role::Member { name } => Some(name),
            Role::Pod | Role::Single => None,
        }
    }

    /// The process that `wanted` names.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn process(&self, wanted: ProcessRef<'_>) -> Result<Arc<Process>> {
        if wanted.exec.is_empty() {
            return Ok(self.init.clone());
        }
        lock(&self.execs).get(wanted.exec).cloned().ok_or_else(|| {
            Error::new(Kind::NotFound, format!("No process {} in container {}", wanted.exec, self.id))
        })
    }

    /// Its processes that were added by exec.
    pub(crate) fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().cloned().collect()
    }

    /// What its hooks are told.
    fn about(&self) -> About<'_> {
        About { id: &self.id, pid: self.init.pid(), bundle: &self.bundle }
    }

    /// The host cgroup that mirrors its limits.
    fn cgroup(&self) -> Option<Arc<ContainerCgroup>> {
        lock(&self.cgroup).clone()
    }
}
