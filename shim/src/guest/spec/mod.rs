//! Translates a container's OCI spec into what the guest runs. Called by `container`; pure, but for what it asks
//! about a memory volume. No path of the host leaves this module except in [`Workload::volumes`], for the share.

mod check;
mod kubelet;
mod linux;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use agent_proto::agent::{CreateContainerRequest, CreateSandboxRequest, Storage};
use agent_proto::oci;
use oci_spec::runtime::Spec;

pub use kubelet::{Backing, Tmpfs, VolumeKind};
pub use namespaces::{GuestPids, PidNamespace, pid_namespace, refuse_host_namespaces};
pub use process::process;
pub use resources::resources;

use super::{GuestName, paths};
use crate::error::Result;

/// Tells the agent which half of a container a request is about.
const ROLE: &str = "io.containerd.microvm.v1.role";
/// Tells the agent whose processes a workload sees: those of the workload with this id.
const PIDS_OF: &str = "io.containerd.microvm.v1.pids-of";
/// Size of `/dev/shm` in bytes, as containerd makes it.
const SHM_SIZE: u64 = 64 << 20;

/// What the translation needs to know beside the spec.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// The container's bundle; relative bind sources start there.
    pub bundle: &'a Path,
    /// Most bytes that the container may write to its root filesystem.
    pub upper_size: u64,
    /// Looks at a path of the host: [`Backing::of`] but in tests.
    pub backing: fn(&Path) -> Backing,
}

impl<'a> Layout<'a> {
    /// A layout that looks at this host.
    #[must_use]
    pub fn new(bundle: &'a Path, upper_size: u64) -> Self {
        Layout { bundle, upper_size, backing: Backing::of }
    }
}

/// A file or directory of the host that the container sees at the guest path [`paths::volume`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Index of the mount in the spec.
    pub index: u32,
    /// Where the container sees it.
    pub destination: String,
    /// Path on the host, absolute. Not looked at yet.
    pub source: PathBuf,
    /// Whether the container may only read.
    pub read_only: bool,
    /// Whether mounts that the host makes below it later shall appear in it.
    pub follow_mounts: bool,
    /// Where it comes from.
    pub kind: VolumeKind,
}

/// A container as the guest runs it, and what the host has to do for it.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The agent's id.
    pub id: String,
    /// The guest's spec.
    pub spec: oci::Spec,
    /// Mounts that the agent makes first, in this order.
    pub storages: Vec<Storage>,
    /// What the share must hold before the guest gets the spec.
    pub volumes: Vec<Volume>,
    /// Whose processes it sees, in the host's words.
    pub pid_namespace: PidNamespace,
    /// Device nodes of the host that a privileged container asked for and does not get.
    pub dropped_devices: Vec<String>,
}

impl Workload {
    /// The mounts of its spec that show a volume of the share.
    #[must_use]
    pub fn volume_mounts(&self) -> Vec<oci::Mount> {
        let below = |mount: &&oci::Mount| {
            mount.source.strip_prefix(paths::VOLUMES).is_some_and(|rest| rest.starts_with('/'))
        };
        self.spec.Mounts.iter().filter(below).cloned().collect()
    }

    /// Adds the kernel parameters of the pod, which CRI writes into the sandbox's spec alone; its own win.
    pub fn inherit_sysctls(&mut self, pod: &HashMap<String, String>) {
        let own = &mut self.spec.Linux.mut_or_insert_default().Sysctl;
        for (name, value) in pod {
            own.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }

    /// The request that creates it, with the processes that it sees.
    #[must_use]
    pub fn request(&self, pids: &GuestPids) -> CreateContainerRequest {
        let mut spec = self.spec.clone();
        if let GuestPids::Of(workload) = pids {
            spec.Annotations.insert(PIDS_OF.into(), workload.clone());
        }
        CreateContainerRequest {
            container_id: self.id.clone(),
            storages: self.storages.clone(),
            OCI: Some(spec).into(),
            sandbox_pidns: *pids == GuestPids::Pod,
            ..Default::default()
        }
    }
}

/// Translates the spec of the container `name`.
///
/// # Errors
/// `InvalidArgument` or `Unimplemented`, naming what a micro-VM can't give or the spec lacks.
pub fn workload(spec: &Spec, name: &GuestName, generation: u32, layout: &Layout<'_>) -> Result<Workload> {
    check::check(spec)?;
    let id = name.workload_id();
    let mounts = mounts::translate(spec, name, generation, layout)?;
    let (linux, dropped_devices) = linux::linux(spec, &id)?;
    let root = oci::Root {
        Path: format!("{}/rootfs", paths::container(&id)),
        Readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        ..Default::default()
    };
    let guest = oci::Spec {
        Version: spec.version().clone(),
        Process: spec.process().as_ref().map(process::process).transpose()?.into(),
        Root: Some(root).into(),
        Hostname: spec.hostname().clone().unwrap_or_default(),
        Mounts: mounts.mounts,
        Hooks: check::guest_hooks(spec).into(),
        Annotations: [(ROLE.to_owned(), "workload".to_owned())].into(),
        Linux: Some(linux).into(),
        ..Default::default()
    };
    let mut storages = mounts.storages;
    storages.insert(0, upper(name, layout.upper_size));
    Ok(Workload {
        id,
        spec: guest,
        storages,
        volumes: mounts.volumes,
        pid_namespace: namespaces::pid_namespace(spec),
        dropped_devices,
    })
}

/// The request that gives the image of `name` a stable path in the guest.
#[must_use]
pub fn carrier(name: &GuestName, generation: u32) -> CreateContainerRequest {
    let root = oci::Root { Path: paths::image(name, generation), Readonly: true, ..Default::default() };
    let spec = oci::Spec {
        Root: Some(root).into(),
        Annotations: [(ROLE.to_owned(), "carrier".to_owned())].into(),
        ..Default::default()
    };
    CreateContainerRequest {
        container_id: name.carrier_id().into(),
        OCI: Some(spec).into(),
        ..Default::default()
    }
}

/// The request that makes the guest a sandbox. Whether a container will share its processes, nobody says before it
/// comes: there is always a namespace to share.
#[must_use]
pub fn sandbox(id: &str, hostname: &str) -> CreateSandboxRequest {
    CreateSandboxRequest {
        hostname: hostname.into(),
        storages: sandbox_storages(),
        sandbox_id: id.into(),
        sandbox_pidns: true,
        ..Default::default()
    }
}

/// The mounts that all containers of a sandbox share: both trees of the share, and `/dev/shm`.
fn sandbox_storages() -> Vec<Storage> {
    let share = |tag: &str, mount_point: &str, options: &[&str]| Storage {
        driver: "virtio-fs".into(),
        source: tag.into(),
        fstype: "virtiofs".into(),
        options: options.iter().map(ToString::to_string).collect(),
        mount_point: mount_point.into(),
        ..Default::default()
    };
    let size = format!("size={SHM_SIZE}");
    vec![
        share(paths::IMAGES_TAG, paths::IMAGES, &["ro", "nodev"]),
        share(paths::VOLUMES_TAG, paths::VOLUMES, &["nodev"]),
        Storage {
            driver: "ephemeral".into(),
            source: "shm".into(),
            fstype: "tmpfs".into(),
            options: ["noexec", "nosuid", "nodev", "mode=1777", &size].map(Into::into).into(),
            mount_point: paths::SHM.into(),
            ..Default::default()
        },
    ]
}

/// The overlay of a workload: the carrier below, a tmpfs of the guest above.
fn upper(name: &GuestName, size: u64) -> Storage {
    let (lower, own) = (paths::container(name.carrier_id()), paths::container(&name.workload_id()));
    Storage {
        driver: "overlayfs".into(),
        driver_options: vec![
            "io.katacontainers.fs-opt.overlay-rw".into(),
            format!("microvm.upper-size={size}"),
        ],
        source: "overlay".into(),
        fstype: "overlay".into(),
        options: vec![
            format!("lowerdir={lower}/rootfs"),
            format!("upperdir={own}/upper/fs"),
            format!("workdir={own}/upper/work"),
        ],
        mount_point: format!("{own}/rootfs"),
        ..Default::default()
    }
}
