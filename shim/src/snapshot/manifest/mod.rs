//! What a snapshot says about itself: checked types that `sandbox` fills in and reads. They are written as they
//! stand here; what is read passes through `raw` and `check` first.

mod check;
mod digest;
mod envelope;
mod raw;
mod rules;

use std::fmt;

use serde::Serialize;

pub use check::Problem;
pub use digest::Digest;
pub(super) use envelope::{MAX_BYTES, parse, render};

use super::{Checksum, Form, MANIFEST, RAM, RAM_INDEX};
use crate::vm::VmmIdentity;

/// Name of the format, first thing in every manifest.
pub const FORMAT: &str = "io.containerd.microvm.v1 snapshot";
/// Version of the format that this build writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// A whole manifest: what the pod was, and the files that hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Manifest {
    /// What the pod was.
    pub contents: Contents,
    /// The guest's RAM.
    pub ram: RamRecord,
    /// The VMM's device state, sorted by name.
    pub files: Vec<FileRecord>,
}

/// What `sandbox` knows about the pod; [`super::Save`] adds the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// When and by what it was made.
    pub made: Made,
    /// The VMM that can restore it.
    #[serde(with = "raw::VmmDef")]
    pub vmm: VmmIdentity,
    /// The guest that booted.
    pub guest: GuestAssets,
    /// The machine's shape, which a restore must build again.
    pub machine: MachineShape,
    /// The pod, for people who read the manifest. A restored pod takes nothing from here.
    pub sandbox: SandboxFacts,
    /// The containers in the guest, the pause container not counted.
    pub containers: Vec<ContainerRecord>,
}

impl Manifest {
    /// Every file of the snapshot with its length, but for the manifest itself.
    pub(super) fn file_lengths(&self) -> impl Iterator<Item = (&str, u64)> {
        let files = self.files.iter().map(|file| (file.name.as_str(), file.length));
        files.chain([(RAM, self.ram.length), (RAM_INDEX, self.ram.index_length)])
    }

    /// The name of every file of the snapshot.
    pub(super) fn file_names(&self) -> Vec<&str> {
        self.file_lengths().map(|(name, _)| name).chain([MANIFEST]).collect()
    }
}

/// When and by what a snapshot was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Seconds since 1970.
    pub at: u64,
    /// Version of the shim.
    pub by: String,
}

impl Made {
    /// Now, by this build.
    #[must_use]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self { at: since.unwrap_or_default().as_secs(), by: env!("CARGO_PKG_VERSION").into() }
    }
}

/// The guest that booted, as the manifest of its assets names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestAssets {
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// Version of the assets.
    pub version: String,
    /// SHA-256 of the kernel.
    pub kernel: Digest,
    /// SHA-256 of the initramfs.
    pub initramfs: Digest,
}

/// The machine's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineShape {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// MAC address of each network device, in the order of their slots.
    pub nics: Vec<String>,
    /// Tag of each virtio-fs device, in the order of their slots.
    pub shares: Vec<String>,
    /// Kernel parameters that the config added at boot.
    pub kernel_params: String,
}

/// The pod as containerd knew it. Empty where there was none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SandboxFacts {
    /// containerd's id of the sandbox.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Kubernetes' namespace of the pod.
    pub pod_namespace: String,
    /// Host name in the guest.
    pub hostname: String,
}

/// One container in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerRecord {
    /// Its stable name in the guest, in the agent's ids and in the paths of the share.
    pub guest_name: String,
    /// How many containers had that name before it, plus one: part of the paths in the share.
    pub generation: u32,
    /// CRI container name, by which a container of the new pod adopts it; none for a plain container.
    pub cri_name: Option<String>,
    /// Its image; none if containerd knew none.
    pub image: Option<ImageRecord>,
    /// What it was doing.
    pub state: ContainerState,
    /// Size in bytes of the guest tmpfs for what it writes to its root filesystem.
    pub upper_size: u64,
    /// Whether its first process has a terminal.
    pub terminal: bool,
    /// Its volumes, in the order of their places in the share.
    pub volumes: Vec<VolumeRecord>,
    /// Processes that were running beside its first one.
    pub execs: Vec<ExecRecord>,
}

/// The image of a container, as containerd's snapshotter can find it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRecord {
    /// Name that the pod used. For messages: what is mounted is found by `layers`.
    pub name: String,
    /// Digest of the image's manifest or index.
    pub digest: Digest,
    /// Snapshotter that held its layers.
    pub snapshotter: String,
    /// Chain id of each layer, lowest first. The last one is the root filesystem.
    pub layers: Vec<Digest>,
}

/// What a container was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Created, its process not yet started.
    Created,
    /// Running.
    Running,
    /// Paused by containerd; runs after a restore.
    Paused,
    /// Restored from an older snapshot and frozen since, until its pod starts it.
    Waiting,
    /// Ended, with this exit status.
    Stopped(u32),
}

/// A volume from the host. Its files are not in the snapshot: the new pod brings its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeRecord {
    /// Its place in the share, `volumes/<guest name>@<generation>/<index>`.
    pub index: u32,
    /// Where the container sees it. The same place of the new pod's container takes its part.
    pub destination: String,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

/// A process that was running beside a container's first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExecRecord {
    /// Its id at the agent.
    pub id: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// How guest RAM is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RamRecord {
    /// Form of the file `ram`.
    pub form: Form,
    /// Length of the file `ram` in bytes.
    pub length: u64,
    /// Length of the file `ram.index` in bytes.
    pub index_length: u64,
    /// Checksum of the file `ram.index`, which has those of all pages.
    pub index: Checksum,
}

/// A file with device state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileRecord {
    /// Its name in the directory.
    pub name: String,
    /// Its length in bytes.
    pub length: u64,
    /// Checksum of all of it.
    pub checksum: Checksum,
}

impl fmt::Display for ContainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContainerState::Created => f.write_str("created"),
            ContainerState::Running => f.write_str("running"),
            ContainerState::Paused => f.write_str("paused"),
            ContainerState::Waiting => f.write_str("waiting"),
            ContainerState::Stopped(status) => write!(f, "stopped ({status})"),
        }
    }
}
