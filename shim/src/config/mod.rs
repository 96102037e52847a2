//! The node's configuration: one TOML file, checked as a whole before anything is started. Called by `main`
//! (start, server), `sandbox` and `microvmctl doctor`. No file but the config itself is opened here.

mod check;
mod doc;
mod file;
mod keys;
mod source;
mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use check::Problem;
pub use doc::{page, template};
pub use source::Source;
pub use value::UpperSize;

use crate::error::Result;

/// Where the config is looked for when nobody names another place.
pub const DEFAULT_PATH: &str = "/etc/containerd/microvm.toml";
/// Environment variable that names another file; read when containerd's runtime options name none.
pub const PATH_VARIABLE: &str = "MICROVM_CONFIG";
/// What pod annotations that change a key start with.
pub const ANNOTATION_PREFIX: &str = "io.containerd.microvm.v1/";

/// Which VMM runs the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VmmChoice {
    /// Whatever works here.
    #[default]
    Auto,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// QEMU.
    Qemu,
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accelerator {
    /// KVM if a kernel boots under it, else TCG.
    #[default]
    Auto,
    /// QEMU's emulation.
    Tcg,
    /// The processor's virtualisation.
    Kvm,
}

/// What a checkpoint does with an emptyDir that lives on a disk of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskVolume {
    /// The checkpoint is refused and names the volume.
    #[default]
    Refuse,
    /// Its files are left out: a restored pod has its own volume there.
    Leave,
}

/// How `microvmctl snapshot create` and `import` keep guest RAM in the node's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StoreRam {
    /// A sparse file: quickest restore, most disk.
    #[default]
    Plain,
    /// Compressed: least disk.
    Packed,
}

/// A checked configuration. Only [`Config::load`] makes one, so each value is within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config(keys::Values);

impl Config {
    /// Reads the file that `source` names (the default file may be missing, a named one may not), puts the keys
    /// of `annotations` that a pod may set above it, and checks everything.
    ///
    /// # Errors
    /// `NotFound` when a named file is missing; `InvalidArgument` with every problem of every source at once.
    pub fn load<'a>(
        source: &Source,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self> {
        let mut files = source.read()?;
        files.push(file::File::from_annotations(annotations));
        check::check(&files).map(Config)
    }

    /// Which VMM runs the pods.
    #[must_use]
    pub fn vmm(&self) -> VmmChoice {
        self.0.vmm
    }

    /// Cloud Hypervisor's binary.
    #[must_use]
    pub fn cloud_hypervisor_path(&self) -> &Path {
        &self.0.cloud_hypervisor_path
    }

    /// Whether Cloud Hypervisor confines itself to its pod's files.
    #[must_use]
    pub fn landlock(&self) -> bool {
        self.0.landlock
    }

    /// QEMU's binary.
    #[must_use]
    pub fn qemu_path(&self) -> &Path {
        &self.0.qemu_path
    }

    /// What executes the guest's instructions.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        self.0.accelerator
    }

    /// Directory of the guest's assets, made by `cargo xtask install`.
    #[must_use]
    pub fn guest_dir(&self) -> &Path {
        &self.0.guest_dir
    }

    /// Guest kernel that replaces the one of [`Config::guest_dir`].
    #[must_use]
    pub fn kernel(&self) -> Option<&Path> {
        self.0.kernel.as_deref()
    }

    /// Guest initramfs that replaces the one of [`Config::guest_dir`].
    #[must_use]
    pub fn initramfs(&self) -> Option<&Path> {
        self.0.initramfs.as_deref()
    }

    /// Parameters added to the guest kernel's command line.
    #[must_use]
    pub fn kernel_params(&self) -> &str {
        &self.0.kernel_params
    }

    /// Virtual CPUs of a pod that asks for none.
    #[must_use]
    pub fn default_vcpus(&self) -> u32 {
        self.0.default_vcpus
    }

    /// Most virtual CPUs that a pod may get.
    #[must_use]
    pub fn max_vcpus(&self) -> u32 {
        self.0.max_vcpus
    }

    /// Guest RAM in bytes of a pod that asks for none.
    #[must_use]
    pub fn default_memory(&self) -> u64 {
        self.0.default_memory
    }

    /// Most guest RAM in bytes that a pod may get, by its limits or by a snapshot.
    #[must_use]
    pub fn max_memory(&self) -> u64 {
        self.0.max_memory
    }

    /// Guest RAM in bytes for the guest itself, on top of what the containers may use.
    #[must_use]
    pub fn memory_overhead(&self) -> u64 {
        self.0.memory_overhead
    }

    /// Whether guest RAM may use huge pages of the host's tmpfs.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.0.huge_pages
    }

    /// Most that a container may write to its root filesystem.
    #[must_use]
    pub fn upper_size(&self) -> UpperSize {
        self.0.upper_size
    }

    /// External virtiofsd; the one in our binary if none.
    #[must_use]
    pub fn virtiofsd_path(&self) -> Option<&Path> {
        self.0.virtiofsd_path.as_deref()
    }

    /// Longest wait for a guest to boot until its agent answers.
    #[must_use]
    pub fn boot_timeout(&self) -> Duration {
        self.0.boot_timeout
    }

    /// Longest wait for one answer of the agent.
    #[must_use]
    pub fn agent_timeout(&self) -> Duration {
        self.0.agent_timeout
    }

    /// Longest run of one OCI hook that names no timeout of its own.
    #[must_use]
    pub fn hook_timeout(&self) -> Duration {
        self.0.hook_timeout
    }

    /// Most templates that the node keeps; with none, every pod boots.
    #[must_use]
    pub fn templates(&self) -> u32 {
        self.0.templates
    }

    /// Directory of the node's templates.
    #[must_use]
    pub fn template_store(&self) -> &Path {
        &self.0.template_store
    }

    /// The node's snapshot store.
    #[must_use]
    pub fn snapshot_store(&self) -> &Path {
        &self.0.snapshot_store
    }

    /// How the store keeps guest RAM.
    #[must_use]
    pub fn snapshot_ram(&self) -> StoreRam {
        self.0.snapshot_ram
    }

    /// What a checkpoint does with an emptyDir on disk.
    #[must_use]
    pub fn disk_volumes(&self) -> DiskVolume {
        self.0.disk_volumes
    }

    /// Directory that holds the sandboxes' directories: `<run_dir>/<namespace>/<sandbox id>`.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.0.run_dir
    }

    /// Most detailed level that is logged.
    #[must_use]
    pub fn log_level(&self) -> log::LevelFilter {
        self.0.log_level
    }

    /// Whether the guest's kernel and agent log everything to the console too.
    #[must_use]
    pub fn guest_debug(&self) -> bool {
        self.0.guest_debug
    }
}

/// What one config file (or containerd's config body) is called in error texts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Defaults,
    File(PathBuf),
    Options,
    Annotations,
}
