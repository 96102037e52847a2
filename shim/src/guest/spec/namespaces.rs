//! What the spec says about namespaces: the host's are refused, the others are interpreted and never sent with
//! their paths. Called by the translation and by `sandbox`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_proto::oci;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use crate::error::{Error, Kind, Result};

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidNamespace {
    /// Its own.
    Own,
    /// Those of the pod's sandbox or of another container: the one whose task's pid stands in this path of the
    /// host, as `/proc/<pid>/ns/pid`.
    Of(PathBuf),
}

/// Whose processes a container sees, in the guest's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GuestPids {
    /// Its own.
    #[default]
    Own,
    /// Those of all containers of the pod that share theirs.
    Pod,
    /// Those of the workload with this id.
    Of(String),
}

impl PidNamespace {
    /// The pid of the host in the path, if it has the form that containerd writes: `/proc/<pid>/ns/pid`.
    #[must_use]
    pub fn task(path: &Path) -> Option<u32> {
        let pid = path.to_str()?.strip_prefix("/proc/")?.strip_suffix("/ns/pid")?;
        pid.parse().ok()
    }
}

/// Refuses the spec of a *sandbox* (or of a container that is its own sandbox) that wants to share a namespace
/// with the host: a missing network, pid or ipc namespace, or the host's own network namespace by path.
///
/// # Errors
/// `InvalidArgument`, naming them all as Kubernetes does.
pub fn refuse_host_namespaces(spec: &Spec) -> Result<()> {
    let namespaces = all(spec);
    let find = |typ| namespaces.iter().find(|namespace| namespace.typ() == typ);
    let mut refused = Vec::new();
    match find(LinuxNamespaceType::Network) {
        None => refused.push("hostNetwork"),
        Some(network) if network.path().as_ref().is_some_and(|path| is_own(path)) => {
            refused.push("hostNetwork");
        }
        Some(_) => {}
    }
    for (typ, name) in [(LinuxNamespaceType::Pid, "hostPID"), (LinuxNamespaceType::Ipc, "hostIPC")] {
        if find(typ).is_none() {
            refused.push(name);
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let text = format!(
        "The pod asks for {}, which a micro-VM can't share with its host; run it with another runtime class",
        refused.join(", ")
    );
    Err(Error::new(Kind::InvalidArgument, text))
}

/// Whose processes the container sees.
#[must_use]
pub fn pid_namespace(spec: &Spec) -> PidNamespace {
    let pid = all(spec).iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Pid);
    let path = pid.and_then(|namespace| namespace.path().clone());
    path.map_or(PidNamespace::Own, PidNamespace::Of)
}

/// The types that the guest is told, without paths: pids go by the request's flag, the network is the guest's, and
/// its clock is its own.
pub(super) fn guest(spec: &Spec) -> Vec<oci::LinuxNamespace> {
    let word = |typ| match typ {
        LinuxNamespaceType::Mount => Some("mount"),
        LinuxNamespaceType::Cgroup => Some("cgroup"),
        LinuxNamespaceType::Uts => Some("uts"),
        LinuxNamespaceType::Ipc => Some("ipc"),
        LinuxNamespaceType::User
        | LinuxNamespaceType::Pid
        | LinuxNamespaceType::Network
        | LinuxNamespaceType::Time => None,
    };
    let types = all(spec).iter().filter_map(|namespace| word(namespace.typ()));
    types.map(|typ| oci::LinuxNamespace { Type: typ.into(), ..Default::default() }).collect()
}

fn all(spec: &Spec) -> &[LinuxNamespace] {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    namespaces.unwrap_or_default()
}

/// Whether a path names the network namespace that the shim itself is in, which is the host's.
fn is_own(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    identity(path).is_some_and(|found| Some(found) == identity(Path::new("/proc/self/ns/net")))
}
