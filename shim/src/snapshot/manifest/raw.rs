//! A manifest as it was read: of the right shape, and otherwise anything. Called by `check`, which makes the
//! types that the rest of the shim sees.

use serde::{Deserialize, Serialize};

use crate::vm::VmmIdentity;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) contents: Contents,
    pub(super) ram: Ram,
    pub(super) files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    pub(super) made: Made,
    #[serde(with = "VmmDef")]
    pub(super) vmm: VmmIdentity,
    pub(super) guest: Guest,
    pub(super) machine: Machine,
    pub(super) sandbox: Sandbox,
    pub(super) containers: Vec<Container>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "VmmIdentity", deny_unknown_fields)]
pub(super) struct VmmDef {
    name: String,
    version: String,
    accelerator: String,
    cpu: String,
    machine: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Made {
    pub(super) at: u64,
    pub(super) by: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Guest {
    pub(super) architecture: String,
    pub(super) version: String,
    pub(super) kernel: String,
    pub(super) initramfs: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    pub(super) vcpus: u32,
    pub(super) memory: u64,
    pub(super) nics: Vec<String>,
    pub(super) shares: Vec<String>,
    pub(super) kernel_params: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) namespace: String,
    pub(super) pod_name: String,
    pub(super) pod_namespace: String,
    pub(super) hostname: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Container {
    pub(super) guest_name: String,
    pub(super) generation: u32,
    pub(super) cri_name: Option<String>,
    pub(super) image: Option<Image>,
    pub(super) state: State,
    pub(super) upper_size: u64,
    pub(super) terminal: bool,
    pub(super) volumes: Vec<Volume>,
    pub(super) execs: Vec<Exec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) digest: String,
    pub(super) snapshotter: String,
    pub(super) layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Created,
    Running,
    Paused,
    Waiting,
    Stopped(u32),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) index: u32,
    pub(super) destination: String,
    pub(super) read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exec {
    pub(super) id: String,
    pub(super) terminal: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ram {
    pub(super) form: Form,
    pub(super) length: u64,
    pub(super) index_length: u64,
    pub(super) index: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Form {
    Plain,
    Packed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) length: u64,
    pub(super) checksum: String,
}
