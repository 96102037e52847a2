//! Pods and containers as a test names them, and as kubelet would write them. Called by `cri` and its callers.

use std::collections::HashMap;
use std::path::PathBuf;

use k8s_cri::v1::{self as wire};

/// Where the logs of all pods go, as with kubelet.
const LOGS: &str = "/var/log/pods";

/// A pod to run.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Name in the metadata; the hostname unless that is set.
    pub name: String,
    /// Makes the pod unique among those of its name.
    pub uid: String,
    /// Another hostname than the name.
    pub hostname: Option<String>,
    /// Annotations of the pod.
    pub annotations: HashMap<String, String>,
    /// Name servers; empty means those of the node.
    pub dns_servers: Vec<String>,
    /// Limits that kubelet sums up for the sandbox.
    pub resources: Option<wire::LinuxContainerResources>,
    /// Whether the pod asks for the network of the node.
    pub host_network: bool,
}

impl Pod {
    /// A pod with nothing special.
    pub fn new(name: &str, uid: &str) -> Pod {
        Pod {
            name: name.to_owned(),
            uid: uid.to_owned(),
            hostname: None,
            annotations: HashMap::new(),
            dns_servers: Vec::new(),
            resources: None,
            host_network: false,
        }
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Pod {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The folder of this pod's logs.
    pub fn log_folder(&self) -> PathBuf {
        PathBuf::from(LOGS).join(format!("default_{}_{}", self.name, self.uid))
    }

    pub(super) fn config(&self) -> wire::PodSandboxConfig {
        let network =
            if self.host_network { wire::NamespaceMode::Node } else { wire::NamespaceMode::Pod } as i32;
        wire::PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: self.hostname.clone().unwrap_or_else(|| self.name.clone()),
            log_directory: self.log_folder().to_string_lossy().into_owned(),
            dns_config: (!self.dns_servers.is_empty())
                .then(|| wire::DnsConfig { servers: self.dns_servers.clone(), ..Default::default() }),
            labels: HashMap::from([("app".to_owned(), self.name.clone())]),
            annotations: self.annotations.clone(),
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods/pod{}", self.uid),
                security_context: Some(wire::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(network)),
                    ..Default::default()
                }),
                resources: self.resources.clone(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct Container {
    /// Name in the metadata.
    pub name: String,
    /// Name of the image.
    pub image: String,
    /// Replaces the image's command unless empty.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Host path, container path, read-only.
    pub mounts: Vec<(PathBuf, String, bool)>,
    /// Limits.
    pub resources: Option<wire::LinuxContainerResources>,
    /// How often a container of this name was made in the pod before.
    pub attempt: u32,
    /// Whether the root filesystem is read-only.
    pub read_only_root: bool,
    /// Numeric user.
    pub user: Option<i64>,
    /// Whether standard input is open.
    pub stdin: bool,
    /// Whether there is a terminal.
    pub tty: bool,
}

impl Container {
    /// A container that runs its image's own command.
    pub fn new(name: &str, image: &str) -> Container {
        Container {
            name: name.to_owned(),
            image: image.to_owned(),
            command: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            resources: None,
            attempt: 0,
            read_only_root: false,
            user: None,
            stdin: false,
            tty: false,
        }
    }

    /// Another command than the image's.
    pub fn command(mut self, words: &[&str]) -> Container {
        self.command = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The log's path below the pod's folder of logs.
    pub fn log_path(&self) -> PathBuf {
        PathBuf::from(&self.name).join(format!("{}.log", self.attempt))
    }

    pub(super) fn config(&self) -> wire::ContainerConfig {
        let mounts = self.mounts.iter().map(|(host, container, readonly)| wire::Mount {
            host_path: host.to_string_lossy().into_owned(),
            container_path: container.clone(),
            readonly: *readonly,
            ..Default::default()
        });
        let envs =
            self.env.iter().map(|(key, value)| wire::KeyValue { key: key.clone(), value: value.clone() });
        wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata { name: self.name.clone(), attempt: self.attempt }),
            image: Some(wire::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: self.command.clone(),
            envs: envs.collect(),
            mounts: mounts.collect(),
            log_path: self.log_path().to_string_lossy().into_owned(),
            stdin: self.stdin,
            tty: self.tty,
            linux: Some(wire::LinuxContainerConfig {
                resources: self.resources.clone(),
                security_context: Some(wire::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(wire::NamespaceMode::Pod as i32)),
                    readonly_rootfs: self.read_only_root,
                    run_as_user: self.user.map(|value| wire::Int64Value { value }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }
}

/// kubelet's default: network and IPC of the pod, a pid namespace for each container.
fn namespaces(network: i32) -> wire::NamespaceOption {
    wire::NamespaceOption {
        network,
        pid: wire::NamespaceMode::Container as i32,
        ipc: wire::NamespaceMode::Pod as i32,
        ..Default::default()
    }
}
