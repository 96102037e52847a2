//! OCI mounts → guest: kernel filesystems stay as they are, binds of the host become volumes of the share or
//! tmpfs of the guest. Called by the translation.

use std::path::{Component, Path, PathBuf};

use agent_proto::agent::Storage;
use agent_proto::oci;
use oci_spec::runtime::{Mount, Spec};

use super::kubelet::{self, Backing, Source, Tmpfs};
use super::linux::in_container;
use super::{GuestName, Layout, Volume, VolumeKind, paths};
use crate::error::{Error, Kind, Result};

/// Filesystems that the guest's kernel makes by itself.
const KERNEL: &[&str] = &["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
/// Trees of the host that no share must hold: they are the host's kernel, not files.
const NOT_FILES: &[&str] = &["/proc", "/sys", "/dev"];
/// Options of a bind mount that mean something in the guest.
const BIND_OPTIONS: &[&str] = &[
    "bind",
    "rbind",
    "ro",
    "rw",
    "rro",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// All mounts of one container.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<oci::Mount>,
    pub(super) storages: Vec<Storage>,
    pub(super) volumes: Vec<Volume>,
}

/// Translates the mounts of `spec`, in their order.
pub(super) fn translate(
    spec: &Spec,
    name: &GuestName,
    generation: u32,
    layout: &Layout<'_>,
) -> Result<Mounts> {
    let mut all = Mounts::default();
    for (index, mount) in (0u32..).zip(spec.mounts().iter().flatten()) {
        let options = mount.options().as_deref().unwrap_or_default();
        refuse_options(mount, options)?;
        let kind = mount.typ().as_deref().unwrap_or_default();
        if is_bind(kind, options) {
            let source = bind_source(mount, layout)?;
            all.bind(
                Bind { mount, index, source, options },
                &|index| paths::volume(name, generation, index),
                layout,
            )?;
        } else if KERNEL.contains(&kind) {
            all.mounts.push(oci::Mount {
                destination: in_container(mount.destination()),
                source: kind.into(),
                type_: kind.into(),
                options: options.to_vec(),
                ..Default::default()
            });
        } else {
            return Err(refuse(mount, &format!("type {kind:?}, which the guest does not mount")));
        }
    }
    Ok(all)
}

/// One bind mount, with its source resolved.
struct Bind<'a> {
    mount: &'a Mount,
    index: u32,
    source: PathBuf,
    options: &'a [String],
}

impl Mounts {
    fn bind(&mut self, bind: Bind<'_>, place: &dyn Fn(u32) -> String, layout: &Layout<'_>) -> Result<()> {
        let destination = bind.mount.destination();
        if destination == Path::new("/dev/shm") {
            self.push(&bind, paths::SHM.into());
            return Ok(());
        }
        let kind = match kubelet::classify(&bind.source, destination) {
            Source::Other(kind) => kind,
            Source::EmptyDir(volume) => match (layout.backing)(&bind.source) {
                Backing::Memory(tmpfs) => return self.ephemeral(&bind, &volume, tmpfs),
                Backing::Disk | Backing::Absent => VolumeKind::EmptyDir,
            },
            Source::SubPath { name, volume } => match (layout.backing)(&volume) {
                Backing::Memory(_) => {
                    let what =
                        format!("a subPath of the memory volume {name:?}; mount the volume as a whole");
                    return Err(refuse(bind.mount, &what));
                }
                Backing::Disk => VolumeKind::EmptyDir,
                Backing::Absent => VolumeKind::Plugin,
            },
        };
        self.push(&bind, place(bind.index));
        let has = |words: &[&str]| bind.options.iter().any(|option| words.contains(&option.as_str()));
        self.volumes.push(Volume {
            index: bind.index,
            read_only: is_read_only(bind.options),
            follow_mounts: has(&["slave", "rslave"]),
            destination: destination.to_string_lossy().into_owned(),
            source: bind.source,
            kind,
        });
        Ok(())
    }

    /// An emptyDir in memory is a tmpfs of the guest, with the size and owner of the host's; all containers of the
    /// pod name the same mount point.
    fn ephemeral(&mut self, bind: &Bind<'_>, volume: &str, tmpfs: Tmpfs) -> Result<()> {
        let is_name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        if !volume.bytes().all(is_name) || volume.bytes().all(|c| c == b'.') {
            return Err(refuse(bind.mount, "a volume whose name is not one of Kubernetes"));
        }
        let mount_point = format!("{}/{volume}", paths::EPHEMERAL);
        self.push(bind, mount_point.clone());
        if self.storages.iter().any(|storage| storage.mount_point == mount_point) {
            return Ok(());
        }
        let Tmpfs { size, mode, uid, gid } = tmpfs;
        let options = [
            "nosuid".into(),
            "nodev".into(),
            format!("size={size}"),
            format!("mode={mode:o}"),
            format!("uid={uid}"),
            format!("gid={gid}"),
        ];
        self.storages.push(Storage {
            driver: "ephemeral".into(),
            source: "tmpfs".into(),
            fstype: "tmpfs".into(),
            options: options.into(),
            mount_point,
            shared: true,
            ..Default::default()
        });
        Ok(())
    }

    fn push(&mut self, bind: &Bind<'_>, source: String) {
        let known = bind.options.iter().filter(|option| BIND_OPTIONS.contains(&option.as_str()));
        self.mounts.push(oci::Mount {
            destination: in_container(bind.mount.destination()),
            source,
            type_: "bind".into(),
            options: known.cloned().collect(),
            ..Default::default()
        });
    }
}

fn is_bind(kind: &str, options: &[String]) -> bool {
    matches!(kind, "bind" | "rbind")
        || options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"))
}

/// The last of `ro` and `rw` wins, as in mount(8).
fn is_read_only(options: &[String]) -> bool {
    let last = options.iter().rfind(|option| matches!(option.as_str(), "ro" | "rro" | "rw"));
    last.is_some_and(|option| option != "rw")
}

/// The absolute path that a bind mount shows, without `.` and `..`.
fn bind_source(mount: &Mount, layout: &Layout<'_>) -> Result<PathBuf> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if source.as_os_str().is_empty() {
        return Err(refuse(mount, "no source"));
    }
    let path = layout.bundle.join(source);
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(refuse(mount, &format!("the source {path:?} with `..` in it")));
    }
    let path: PathBuf = path.components().collect();
    let shm = mount.destination() == Path::new("/dev/shm") || path.starts_with("/dev/shm");
    if !shm && NOT_FILES.iter().any(|tree| path.starts_with(tree)) {
        let what =
            format!("the source {path:?}: devices and kernel interfaces of the host stay outside a micro-VM");
        return Err(refuse(mount, &what));
    }
    Ok(path)
}

fn refuse_options(mount: &Mount, options: &[String]) -> Result<()> {
    let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    for option in options {
        match option.as_str() {
            "shared" | "rshared" => {
                let what =
                    "Bidirectional mount propagation: mounts made in a micro-VM can't appear on the host";
                return Err(refuse(mount, what));
            }
            "idmap" | "ridmap" => return Err(refuse(mount, "mapped user ids")),
            // No option of a filesystem in `KERNEL` names a path.
            other if other.contains('/') => return Err(refuse(mount, &format!("the option {other:?}"))),
            _ => {}
        }
    }
    if mapped { Err(refuse(mount, "mapped user ids")) } else { Ok(()) }
}

fn refuse(mount: &Mount, what: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("The mount at {:?} has {what}", mount.destination()))
}
