//! The table of all config keys: name, default, what a person should know, and how the value is checked. It is the
//! only place to touch for a new key, besides its getter; the template and `docs/config.md` are made from it.

use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::value::{self, Scalar, UpperSize, Want};
use super::{Accelerator, DiskVolume, StoreRam, VmmChoice};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// One key of the config file.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// Title of the group that starts at this key, for the documentation.
    pub(super) group: Option<&'static str>,
    /// As it would stand in the file.
    pub(super) default: &'static str,
    /// What it does, what its unit is, what else is possible. Whole sentences.
    pub(super) text: &'static str,
    /// Whether a pod may set it by an annotation.
    pub(super) annotation: bool,
    /// Checks a value and stores it.
    pub(super) set: fn(&mut Values, &Scalar) -> Result<(), Want>,
}

/// The values behind [`super::Config`]. Blank when made; the defaults of [`KEYS`] come first, then the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Values {
    pub(super) vmm: VmmChoice,
    pub(super) cloud_hypervisor_path: PathBuf,
    pub(super) landlock: bool,
    pub(super) qemu_path: PathBuf,
    pub(super) accelerator: Accelerator,
    pub(super) guest_dir: PathBuf,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initramfs: Option<PathBuf>,
    pub(super) kernel_params: String,
    pub(super) default_vcpus: u32,
    pub(super) max_vcpus: u32,
    pub(super) default_memory: u64,
    pub(super) max_memory: u64,
    pub(super) memory_overhead: u64,
    pub(super) huge_pages: bool,
    pub(super) upper_size: UpperSize,
    pub(super) virtiofsd_path: Option<PathBuf>,
    pub(super) boot_timeout: Duration,
    pub(super) agent_timeout: Duration,
    pub(super) hook_timeout: Duration,
    pub(super) templates: u32,
    pub(super) template_store: PathBuf,
    pub(super) snapshot_store: PathBuf,
    pub(super) snapshot_ram: StoreRam,
    pub(super) disk_volumes: DiskVolume,
    pub(super) run_dir: PathBuf,
    pub(super) log_level: LevelFilter,
    pub(super) guest_debug: bool,
}

impl Values {
    /// Nothing set; never leaves this module's neighbours without the defaults on top.
    pub(super) fn blank() -> Self {
        Values {
            vmm: VmmChoice::default(),
            cloud_hypervisor_path: PathBuf::new(),
            landlock: false,
            qemu_path: PathBuf::new(),
            accelerator: Accelerator::default(),
            guest_dir: PathBuf::new(),
            kernel: None,
            initramfs: None,
            kernel_params: String::new(),
            default_vcpus: 0,
            max_vcpus: 0,
            default_memory: 0,
            max_memory: 0,
            memory_overhead: 0,
            huge_pages: false,
            upper_size: UpperSize::default(),
            virtiofsd_path: None,
            boot_timeout: Duration::ZERO,
            agent_timeout: Duration::ZERO,
            hook_timeout: Duration::ZERO,
            templates: 0,
            template_store: PathBuf::new(),
            snapshot_store: PathBuf::new(),
            snapshot_ram: StoreRam::default(),
            disk_volumes: DiskVolume::default(),
            run_dir: PathBuf::new(),
            log_level: LevelFilter::Off,
            guest_debug: false,
        }
    }
}

/// Default of `qemu_path`: QEMU names its binaries by the architecture it emulates.
const QEMU: &str = if cfg!(target_arch = "aarch64") {
    "\"/usr/bin/qemu-system-aarch64\""
} else {
    "\"/usr/bin/qemu-system-x86_64\""
};

/// Every key, in the order of the documentation.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "vmm",
        group: Some("Virtual machine monitor"),
        default: "\"auto\"",
        text: "Program that runs the pods: \"cloud-hypervisor\", \"qemu\", or \"auto\": Cloud Hypervisor where it is \
               installed and KVM works, else QEMU.",
        annotation: false,
        set: |values, value| {
            let names = [
                ("auto", VmmChoice::Auto),
                ("cloud-hypervisor", VmmChoice::CloudHypervisor),
                ("qemu", VmmChoice::Qemu),
            ];
            value::choice(value, &names).map(|vmm| values.vmm = vmm)
        },
    },
    Key {
        name: "cloud_hypervisor_path",
        group: None,
        default: "\"/usr/bin/cloud-hypervisor\"",
        text: "Cloud Hypervisor's binary, version 52.0 or newer.",
        annotation: false,
        set: |values, value| value::path(value).map(|path| values.cloud_hypervisor_path = path),
    },
    Key {
        name: "landlock",
        group: None,
        default: "true",
        text: "Has Cloud Hypervisor confine itself to the files of its pod by Landlock, which needs Linux 6.2 or newer.",
        annotation: false,
        set: |values, value| value::boolean(value).map(|flag| values.landlock = flag),
    },
    Key {
        name: "qemu_path",
        group: None,
        default: QEMU,
        text: "QEMU's binary, version 8.2 or newer.",
        annotation: false,
        set: |values, value| value::path(value).map(|path| values.qemu_path = path),
    },
    Key {
        name: "accelerator",
        group: None,
        default: "\"auto\"",
        text: "What executes the guest: \"kvm\", \"tcg\" (emulation, works everywhere), or \"auto\": KVM if a kernel \
               really boots under it, else TCG. The answer is kept until the host boots again.",
        annotation: false,
        set: |values, value| {
            let names = [("auto", Accelerator::Auto), ("tcg", Accelerator::Tcg), ("kvm", Accelerator::Kvm)];
            value::choice(value, &names).map(|accelerator| values.accelerator = accelerator)
        },
    },
    Key {
        name: "guest_dir",
        group: Some("Guest"),
        default: "\"/usr/share/microvm/guest\"",
        text: "Directory with the guest's kernel, initramfs and their manifest, as `cargo xtask install` lays it \
               down.",
        annotation: false,
        set: |values, value| value::path(value).map(|path| values.guest_dir = path),
    },
    Key {
        name: "kernel",
        group: None,
        default: "\"\"",
        text: "Kernel to boot instead of the one in `guest_dir`. Empty: none.",
        annotation: false,
        set: |values, value| value::optional_path(value).map(|path| values.kernel = path),
    },
    Key {
        name: "initramfs",
        group: None,
        default: "\"\"",
        text: "Initramfs to boot instead of the one in `guest_dir`. Empty: none.",
        annotation: false,
        set: |values, value| value::optional_path(value).map(|path| values.initramfs = path),
    },
    Key {
        name: "kernel_params",
        group: None,
        default: "\"\"",
        text: "Parameters added to the guest kernel's command line.",
        annotation: false,
        set: |values, value| value::line(value).map(|line| values.kernel_params = line),
    },
    Key {
        name: "guest_debug",
        group: None,
        default: "false",
        text: "Lets the guest's kernel and agent log everything to `console.log`. Slows the boot down.",
        annotation: true,
        set: |values, value| value::boolean(value).map(|flag| values.guest_debug = flag),
    },
    Key {
        name: "default_vcpus",
        group: Some("Size of a pod"),
        default: "1",
        text: "Virtual CPUs of a pod without CPU limits.",
        annotation: true,
        set: |values, value| value::count(value, 1, 255).map(|count| values.default_vcpus = count),
    },
    Key {
        name: "max_vcpus",
        group: None,
        default: "8",
        text: "Most virtual CPUs that a pod may get, whatever its limits say.",
        annotation: false,
        set: |values, value| value::count(value, 1, 255).map(|count| values.max_vcpus = count),
    },
    Key {
        name: "default_memory",
        group: None,
        default: "\"256MiB\"",
        text: "Guest RAM of a pod without memory limits. Host memory is used only as the guest touches it.",
        annotation: true,
        set: |values, value| {
            value::size(value, 128 * MIB, 1024 * GIB).map(|bytes| values.default_memory = bytes)
        },
    },
    Key {
        name: "max_memory",
        group: None,
        default: "\"16GiB\"",
        text: "Most guest RAM that a pod may get, by its limits or by the snapshot it is restored from.",
        annotation: false,
        set: |values, value| value::size(value, 128 * MIB, 1024 * GIB).map(|bytes| values.max_memory = bytes),
    },
    Key {
        name: "memory_overhead",
        group: None,
        default: "\"96MiB\"",
        text: "Guest RAM for the guest's own kernel and agent, on top of the containers' memory limits.",
        annotation: false,
        set: |values, value| {
            value::size(value, 32 * MIB, 16 * GIB).map(|bytes| values.memory_overhead = bytes)
        },
    },
    Key {
        name: "huge_pages",
        group: None,
        default: "true",
        text: "Backs guest RAM of 1 GiB and more by transparent huge pages where the host's tmpfs allows it.",
        annotation: false,
        set: |values, value| value::boolean(value).map(|flag| values.huge_pages = flag),
    },
    Key {
        name: "upper_size",
        group: Some("Files"),
        default: "\"50%\"",
        text: "Most that one container may write to its root filesystem, which lives in guest RAM: a share of the \
               guest's RAM (\"50%\") or a size (\"1GiB\"). A container that writes more gets ENOSPC.",
        annotation: true,
        set: |values, value| value::upper_size(value).map(|size| values.upper_size = size),
    },
    Key {
        name: "virtiofsd_path",
        group: None,
        default: "\"\"",
        text: "External virtiofsd (1.14 or newer) instead of the one inside the shim's binary. Empty: none.",
        annotation: false,
        set: |values, value| value::optional_path(value).map(|path| values.virtiofsd_path = path),
    },
    Key {
        name: "run_dir",
        group: None,
        default: "\"/run/microvm\"",
        text: "Directory for the running sandboxes' files: `<namespace>/<sandbox id>/`. Must be on a tmpfs.",
        annotation: false,
        set: |values, value| value::path(value).map(|path| values.run_dir = path),
    },
    Key {
        name: "boot_timeout",
        group: Some("Deadlines"),
        default: "\"60s\"",
        text: "Longest wait for a guest to boot until its agent answers.",
        annotation: false,
        set: |values, value| value::duration(value, SECOND, HOUR).map(|time| values.boot_timeout = time),
    },
    Key {
        name: "agent_timeout",
        group: None,
        default: "\"30s\"",
        text: "Longest wait for one answer of the guest's agent.",
        annotation: false,
        set: |values, value| value::duration(value, SECOND, HOUR).map(|time| values.agent_timeout = time),
    },
    Key {
        name: "hook_timeout",
        group: None,
        default: "\"10s\"",
        text: "Longest run of an OCI hook that names no timeout of its own.",
        annotation: false,
        set: |values, value| value::duration(value, SECOND, HOUR).map(|time| values.hook_timeout = time),
    },
    Key {
        name: "templates",
        group: Some("Templates"),
        default: "8",
        text: "Most templates that the node keeps: machines that have booted once, from which later pods of the same size \
               go on instead of booting. 0 turns them off. docs/security.md says what clones of one share.",
        annotation: false,
        set: |values, value| value::count(value, 0, 1000).map(|count| values.templates = count),
    },
    Key {
        name: "template_store",
        group: None,
        default: "\"/var/lib/microvm/templates\"",
        text: "Directory of the templates; each takes about as much as an idle guest. `microvmctl template` works in it.",
        annotation: false,
        set: |values, value| value::path(value).map(|path| values.template_store = path),
    },
    Key {
        name: "snapshot_store",
        group: Some("Snapshots"),
        default: "\"/var/lib/microvm/snapshots\"",
        text: "Directory of this node's snapshots, one directory each. `microvmctl snapshot` works in it, and the \
               annotation `io.containerd.microvm.v1/restore-from` names one of them.",
        annotation: false,
        set: |values, value| value::path(value).map(|path| values.snapshot_store = path),
    },
    Key {
        name: "snapshot_ram",
        group: None,
        default: "\"plain\"",
        text: "How `microvmctl snapshot create` and `import` keep guest RAM: \"plain\" (a sparse file, restores fastest) or \
               \"packed\" (compressed, takes least disk).",
        annotation: false,
        set: |values, value| {
            let names = [("plain", StoreRam::Plain), ("packed", StoreRam::Packed)];
            value::choice(value, &names).map(|form| values.snapshot_ram = form)
        },
    },
    Key {
        name: "disk_volumes",
        group: None,
        default: "\"refuse\"",
        text: "What a checkpoint does with an emptyDir on a disk of the host, whose files are not in guest memory: \
               \"refuse\" names the volume and fails, \"leave\" goes on without its files, and a restored pod finds its \
               own empty volume there.",
        annotation: false,
        set: |values, value| {
            let names = [("refuse", DiskVolume::Refuse), ("leave", DiskVolume::Leave)];
            value::choice(value, &names).map(|choice| values.disk_volumes = choice)
        },
    },
    Key {
        name: "log_level",
        group: Some("Logging"),
        default: "\"info\"",
        text: "Most detailed level that the shim logs: \"error\", \"warn\", \"info\", \"debug\" or \"trace\". The \
               signal SIGUSR1 switches a running shim between this level and \"debug\".",
        annotation: false,
        set: |values, value| {
            let names = [
                ("error", LevelFilter::Error),
                ("warn", LevelFilter::Warn),
                ("info", LevelFilter::Info),
                ("debug", LevelFilter::Debug),
                ("trace", LevelFilter::Trace),
            ];
            value::choice(value, &names).map(|level| values.log_level = level)
        },
    },
];
