//! What a helper has to do, checked: the wire's OCI spec becomes a [`Plan`] before anything is made, so that a spec that can't
//! be carried out is refused with a clear text. `create` and `exec` make plans, the helper follows them.

use std::collections::HashMap;
use std::path::PathBuf;

use agent_proto::oci;
use serde::{Deserialize, Serialize};

use super::Namespaces;
use crate::error::{Error, Kind, Result};

mod hooks;
mod mounts;
mod namespaces;
mod process;
mod seccomp;
mod sysctls;

pub(super) use hooks::Hook;
pub(super) use mounts::{Mount, Source};
pub(super) use namespaces::{Space, Spaces};
pub(super) use process::{Capabilities, Limit, Process, Size};
pub(super) use seccomp::Filter;

/// All of a container but its resources.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) id: String,
    pub(super) root: PathBuf,
    pub(super) read_only: bool,
    /// MS_… flags for the root, if the spec names any.
    pub(super) propagation: Option<u64>,
    pub(super) spaces: Spaces,
    pub(super) hostname: Option<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) nodes: Vec<Node>,
    pub(super) masked: Vec<String>,
    pub(super) read_only_paths: Vec<String>,
    /// Path below /proc/sys, value.
    pub(super) sysctls: Vec<(String, String)>,
    /// In the container's namespaces with the guest's files.
    pub(super) create_hooks: Vec<Hook>,
    /// In the container, before its program.
    pub(super) start_hooks: Vec<Hook>,
    /// Told to the hooks.
    pub(super) annotations: HashMap<String, String>,
    pub(super) process: Process,
}

/// A device node of the spec.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: String,
    /// S_IFCHR, S_IFBLK or S_IFIFO.
    pub(super) kind: u32,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Plan {
    /// Checks a spec. The compiled seccomp filter comes with the process.
    pub(super) fn new(id: &str, root: PathBuf, spec: &oci::Spec, joins: &Namespaces) -> Result<Self> {
        let linux = spec.Linux.get_or_default();
        let spaces = Spaces::new(&linux.Namespaces, joins)?;
        let filter = linux.Seccomp.as_ref().map(seccomp::compile).transpose()?.flatten();
        let process = spec.Process.as_ref().ok_or_else(|| refuse("The spec has no process to run"))?;
        let named = !spec.Hostname.is_empty() && spaces.own_uts();
        let hooks = spec.Hooks.get_or_default();
        Ok(Self {
            id: id.to_owned(),
            root,
            read_only: spec.Root.Readonly,
            propagation: mounts::propagation(&linux.RootfsPropagation)?,
            hostname: named.then(|| spec.Hostname.clone()),
            mounts: spec.Mounts.iter().map(Mount::new).collect::<Result<_>>()?,
            nodes: linux.Devices.iter().map(Node::new).collect::<Result<_>>()?,
            masked: linux.MaskedPaths.clone(),
            read_only_paths: linux.ReadonlyPaths.clone(),
            sysctls: sysctls::check(&linux.Sysctl, &spaces)?,
            create_hooks: hooks.CreateContainer.iter().map(Hook::new).collect::<Result<_>>()?,
            start_hooks: hooks.StartContainer.iter().map(Hook::new).collect::<Result<_>>()?,
            annotations: spec.Annotations.clone(),
            process: Process::new(process, filter)?,
            spaces,
        })
    }
}

impl Node {
    fn new(device: &oci::LinuxDevice) -> Result<Self> {
        let kind = match device.Type.as_str() {
            "c" | "u" => libc::S_IFCHR,
            "b" => libc::S_IFBLK,
            "p" => libc::S_IFIFO,
            other => return Err(refuse(format!("Device {} is of the unknown type {other:?}", device.Path))),
        };
        let number = |value: i64| {
            u32::try_from(value).map_err(|_| refuse(format!("Device {} has the number {value}", device.Path)))
        };
        let fifo = kind == libc::S_IFIFO;
        Ok(Self {
            path: absolute(&device.Path, "Device")?,
            kind,
            major: if fifo { 0 } else { number(device.Major)? },
            minor: if fifo { 0 } else { number(device.Minor)? },
            mode: if device.FileMode == 0 { 0o666 } else { device.FileMode & 0o7777 },
            uid: device.UID,
            gid: device.GID,
        })
    }
}

fn refuse(text: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, text)
}

fn absolute(path: &str, what: &str) -> Result<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(refuse(format!("{what} path {path:?} is not absolute")));
    }
    Ok(path.to_owned())
}
