//! What a bundle's `config.json` says about the sandbox: what kind of container it is, who it belongs to, where its
//! network is, how big its VM has to be. Called by `sandbox` at Create; checks, starts nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, LinuxResources};

pub(crate) use oci_spec::runtime::Spec;

use crate::config::Config;
use crate::error::{Context, Error, Kind, Result};
use crate::guest::spec as guest_spec;
use crate::template::size_class;

/// What CRI calls a sandbox in `io.kubernetes.cri.container-type`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// Annotation that names the snapshot which a new pod goes on from.
pub const RESTORE_FROM: &str = "io.containerd.microvm.v1/restore-from";

/// Guest RAM comes in steps of this size, in bytes: a huge page.
const MEMORY_STEP: u64 = 2 << 20;

/// Largest `config.json` that is read, in bytes. Kubernetes bounds a pod at 1.5 MiB.
const MAX_SPEC: u64 = 8 << 20;

/// Which part of a pod a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    /// CRI's pause container: the sandbox itself, without a process in the guest.
    Pod,
    /// A container of a pod; CRI names it.
    Member {
        /// Its name in the pod's manifest.
        name: String,
    },
    /// A container without CRI: its own sandbox.
    Single,
}

/// Where the pod's network is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// A network namespace that exists already.
    Namespace(PathBuf),
    /// None was named: the sandbox makes one and others find it at `/proc/<pid>/ns/net`.
    Own,
}

/// Which pod this is, in a person's words and for the paths that its name is part of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodName {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
}

/// Size of the virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
    /// Guest RAM in bytes.
    pub(crate) memory: u64,
}

/// Reads `config.json` of a bundle.
///
/// # Errors
/// `InvalidArgument` naming the file when it is missing, larger than 8 MiB or malformed.
pub(crate) fn read_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let what = || format!("Could not read the container's spec {}", path.display());
    let size = std::fs::metadata(&path).kind(Kind::InvalidArgument, what)?.len();
    if size > MAX_SPEC {
        let text =
            format!("The container's spec {} has {size} bytes, at most {MAX_SPEC} are read", path.display());
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let bytes = std::fs::read(&path).kind(Kind::InvalidArgument, what)?;
    serde_json::from_slice(&bytes).kind(Kind::InvalidArgument, what)
}

/// Which part of a pod the container with this spec is.
///
/// # Errors
/// `InvalidArgument` for a CRI container without a name or of an unknown type.
pub(crate) fn role(spec: &Spec) -> Result<Role> {
    match annotation(spec, CONTAINER_TYPE) {
        None => Ok(Role::Single),
        Some("sandbox") => Ok(Role::Pod),
        Some("container") => match annotation(spec, CONTAINER_NAME) {
            Some(name) => Ok(Role::Member { name: name.to_owned() }),
            None => Err(Error::new(Kind::InvalidArgument, format!("Annotation {CONTAINER_NAME} is missing"))),
        },
        Some(other) => {
            let text = format!(
                "Annotation {CONTAINER_TYPE} is \"{other}\", known are \"sandbox\" and \"container\""
            );
            Err(Error::new(Kind::InvalidArgument, text))
        }
    }
}

/// The pod's name, namespace and uid, empty without CRI.
pub(crate) fn pod_name(spec: &Spec) -> PodName {
    let text = |key| annotation(spec, key).unwrap_or_default().to_owned();
    PodName { name: text(SANDBOX_NAME), namespace: text(SANDBOX_NAMESPACE), uid: text(SANDBOX_UID) }
}

/// The kernel parameters of the pod, which stand in the spec of CRI's sandbox; without CRI a container has its own.
pub(crate) fn pod_sysctls(spec: &Spec) -> HashMap<String, String> {
    match annotation(spec, CONTAINER_TYPE) {
        Some(_) => spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default(),
        None => HashMap::new(),
    }
}

/// The CRI sandbox that the container belongs to.
pub(crate) fn sandbox_id(spec: &Spec) -> Option<&str> {
    annotation(spec, SANDBOX_ID)
}

/// Name of the snapshot that the pod goes on from.
pub(crate) fn restore_from(spec: &Spec) -> Option<&str> {
    annotation(spec, RESTORE_FROM)
}

/// Where the network is. The host's own namespaces can't be had inside a VM.
///
/// # Errors
/// `InvalidArgument` when the spec asks for the host's network, PID or IPC namespace.
pub(crate) fn network(spec: &Spec) -> Result<Network> {
    guest_spec::refuse_host_namespaces(spec)?;
    let namespaces =
        spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let network = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let path = network.and_then(|namespace| namespace.path().clone());
    Ok(path.map_or(Network::Own, Network::Namespace))
}

/// How big the VM must be: the pod's limits and what the guest itself needs, within the node's bounds; the
/// config's default where there is no limit. With templates, RAM is of a size that they have.
pub(crate) fn size(spec: &Spec, config: &Config) -> Size {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let (memory, quota) = match annotation(spec, CONTAINER_TYPE) {
        Some(_) => (
            number(spec, SANDBOX_MEMORY),
            number(spec, SANDBOX_CPU_QUOTA).zip(number(spec, SANDBOX_CPU_PERIOD)),
        ),
        None => (memory_limit(resources), cpu_quota(resources)),
    };
    let memory = match memory.filter(|limit| *limit > 0) {
        Some(limit) => limit.saturating_add(config.memory_overhead()),
        None => config.default_memory(),
    };
    let vcpus = match quota.filter(|(quota, period)| *quota > 0 && *period > 0) {
        Some((quota, period)) => u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX),
        None => config.default_vcpus(),
    };
    let memory = if config.templates() > 0 { size_class(memory.min(config.max_memory())) } else { memory };
    let memory = memory.min(config.max_memory()).div_ceil(MEMORY_STEP).saturating_mul(MEMORY_STEP);
    Size { vcpus: vcpus.clamp(1, config.max_vcpus()), memory }
}

/// Pod annotations that may change the node's config.
pub(crate) fn annotations(spec: &Spec) -> impl Iterator<Item = (&str, &str)> {
    let all: Option<&HashMap<String, String>> = spec.annotations().as_ref();
    all.into_iter()
        .flatten()
        .filter(|(key, _)| *key != RESTORE_FROM)
        .map(|(key, value)| (key.as_str(), value.as_str()))
}

fn annotation<'a>(spec: &'a Spec, key: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(key).map(String::as_str)
}

fn number(spec: &Spec, key: &str) -> Option<u64> {
    annotation(spec, key)?.parse().ok()
}

fn memory_limit(resources: Option<&LinuxResources>) -> Option<u64> {
    u64::try_from(resources?.memory().as_ref()?.limit()?).ok()
}

fn cpu_quota(resources: Option<&LinuxResources>) -> Option<(u64, u64)> {
    let cpu = resources?.cpu().as_ref()?;
    Some((u64::try_from(cpu.quota()?).ok()?, cpu.period().unwrap_or(100_000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn config(templates: u32) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            format!("templates = {templates}\ndefault_memory = \"256MiB\"\nmemory_overhead = \"64MiB\"\nmax_memory = \"1GiB\"\nmax_vcpus = 4\n"),
        )
        .unwrap();
        Config::load(&Source::Path(file.path().into()), []).unwrap()
    }

    fn namespaces(list: &str) -> Spec {
        spec(&format!(r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": {list}}}}}"#))
    }

    #[test]
    fn roles_come_from_the_cri_annotations() {
        assert_eq!(role(&spec(r#"{"ociVersion": "1"}"#)).unwrap(), Role::Single);
        let kind = |kind: &str| {
            let json = format!(
                r#"{{"ociVersion": "1", "annotations": {{"{CONTAINER_TYPE}": "{kind}", "{CONTAINER_NAME}": "web"}}}}"#
            );
            role(&spec(&json))
        };
        assert_eq!(kind("sandbox").unwrap(), Role::Pod);
        assert_eq!(kind("container").unwrap(), Role::Member { name: "web".into() });
        assert!(kind("pod").unwrap_err().to_string().contains("\"pod\""));
    }

    #[test]
    fn the_network_namespace_is_taken_or_made() {
        let list =
            |path: &str| format!(r#"[{{"type": "network"{path}}}, {{"type": "pid"}}, {{"type": "ipc"}}]"#);
        assert_eq!(network(&namespaces(&list(""))).unwrap(), Network::Own);
        let named = network(&namespaces(&list(r#", "path": "/run/netns/a""#))).unwrap();
        assert_eq!(named, Network::Namespace("/run/netns/a".into()));
    }

    #[test]
    fn size_follows_the_limits_within_the_nodes_bounds() {
        let of = |templates: u32, memory: i64, quota: i64| {
            let json = format!(
                r#"{{"ociVersion": "1", "linux": {{"resources":
                   {{"memory": {{"limit": {memory}}}, "cpu": {{"quota": {quota}, "period": 100000}}}}}}}}"#
            );
            size(&spec(&json), &config(templates))
        };
        let limits = |memory, quota| of(0, memory, quota);
        const MIB: u64 = 1 << 20;
        assert_eq!(limits(100 << 20, 150_000), Size { vcpus: 2, memory: 164 * MIB });
        assert_eq!(limits(1, 1), Size { vcpus: 1, memory: 66 * MIB });
        assert_eq!(limits(i64::MAX, i64::MAX), Size { vcpus: 4, memory: 1024 * MIB });
        assert_eq!(limits(-1, -1), Size { vcpus: 1, memory: 256 * MIB });
        // With templates, of the next size that they have, within the same bounds.
        assert_eq!(of(8, 100 << 20, 1), Size { vcpus: 1, memory: 192 * MIB });
        assert_eq!(of(8, i64::MAX, 1), Size { vcpus: 1, memory: 1024 * MIB });
    }
}
