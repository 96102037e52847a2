//! What a bind mount is, told by where kubelet and containerd keep things. Called by the translation of mounts.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// Where a volume comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeKind {
    /// A path that the pod or the client of containerd named.
    HostPath,
    /// An emptyDir on the host's disk: data of the pod, which no snapshot of the VM holds.
    EmptyDir,
    /// A config map, written by kubelet.
    ConfigMap,
    /// A secret, written by kubelet.
    Secret,
    /// Several sources in one directory, written by kubelet: service account tokens for example.
    Projected,
    /// Fields of the pod, written by kubelet.
    DownwardApi,
    /// Another volume plug-in of kubelet, for example a persistent volume.
    Plugin,
    /// `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
    EtcFile,
    /// The file of a container's last words.
    TerminationLog,
}

/// What a path of the host is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: there is no such path.
    Absent,
    /// A filesystem that keeps files.
    Disk,
    /// Memory.
    Memory(Tmpfs),
}

/// A tmpfs of the host that a memory volume is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tmpfs {
    /// Bytes; 0 for no limit.
    pub size: u64,
    /// Permission bits of its root.
    pub mode: u32,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root: the pod's fsGroup.
    pub gid: u32,
}

impl Backing {
    /// Looks at `path` on this host.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let (Ok(fs), Ok(meta)) = (statfs(path), path.metadata()) else { return Backing::Absent };
        if fs.filesystem_type() != TMPFS_MAGIC {
            return Backing::Disk;
        }
        let block = u64::try_from(fs.block_size()).unwrap_or_default();
        Backing::Memory(Tmpfs {
            size: fs.blocks().saturating_mul(block),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
        })
    }
}

/// A bind source, as far as its path tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// An emptyDir with this name, on disk or in memory.
    EmptyDir(String),
    /// A part (`subPath`) of the volume with this name, whose directory would be `volume` if it is an emptyDir.
    SubPath { name: String, volume: PathBuf },
    /// Anything else.
    Other(VolumeKind),
}

/// Tells what a mount of `source` at `destination` is. Of a path that kubelet has not made, nothing is believed
/// but that it is a path of the host.
pub(super) fn classify(source: &Path, destination: &Path) -> Source {
    let parts: Vec<&str> = source.components().filter_map(name).collect();
    // <kubelet's root>/pods/<uid>/…
    let pod = parts.iter().rposition(|part| *part == "pods").filter(|at| *at > 0);
    if let Some(at) = pod {
        match parts.get(at + 2..).unwrap_or_default() {
            ["volumes", plugin, volume, ..] if plugin.starts_with("kubernetes.io~") => {
                return of_plugin(plugin, volume);
            }
            ["volume-subpaths", volume, _, _] => {
                let root: PathBuf = source.ancestors().nth(4).unwrap_or(source).into();
                let volume_dir = root.join("volumes/kubernetes.io~empty-dir").join(volume);
                return Source::SubPath { name: (*volume).into(), volume: volume_dir };
            }
            ["etc-hosts"] => return Source::Other(VolumeKind::EtcFile),
            ["containers", _, _] => return Source::Other(VolumeKind::TerminationLog),
            _ => {}
        }
    }
    let in_etc = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"].map(Path::new).contains(&destination);
    Source::Other(if in_etc { VolumeKind::EtcFile } else { VolumeKind::HostPath })
}

fn of_plugin(plugin: &str, volume: &str) -> Source {
    Source::Other(match plugin {
        "kubernetes.io~empty-dir" => return Source::EmptyDir(volume.into()),
        "kubernetes.io~configmap" => VolumeKind::ConfigMap,
        "kubernetes.io~secret" => VolumeKind::Secret,
        "kubernetes.io~projected" => VolumeKind::Projected,
        "kubernetes.io~downward-api" => VolumeKind::DownwardApi,
        _ => VolumeKind::Plugin,
    })
}

fn name(component: Component<'_>) -> Option<&str> {
    match component {
        Component::Normal(name) => name.to_str(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(source: &str) -> Source {
        classify(Path::new(source), Path::new("/data"))
    }

    #[test]
    fn kubelet_paths_tell_the_kind_of_a_volume() {
        let pod = "/var/lib/kubelet/pods/7b6f";
        let volume = |plugin: &str| kind(&format!("{pod}/volumes/kubernetes.io~{plugin}/v1"));
        assert_eq!(volume("empty-dir"), Source::EmptyDir("v1".into()));
        assert_eq!(volume("secret"), Source::Other(VolumeKind::Secret));
        assert_eq!(volume("csi"), Source::Other(VolumeKind::Plugin));
        assert_eq!(kind(&format!("{pod}/etc-hosts")), Source::Other(VolumeKind::EtcFile));
        assert_eq!(kind(&format!("{pod}/containers/web/1a2b")), Source::Other(VolumeKind::TerminationLog));
        let subpath = Source::SubPath {
            name: "v1".into(),
            volume: format!("{pod}/volumes/kubernetes.io~empty-dir/v1").into(),
        };
        assert_eq!(kind(&format!("{pod}/volume-subpaths/v1/web/0")), subpath);
        for other in
            ["/srv/data", "/", "/pods/a/etc-hosts", "/var/lib/kubelet/pods", "/var/lib/kubelet/pods/a"]
        {
            assert_eq!(kind(other), Source::Other(VolumeKind::HostPath), "{other}");
        }
    }

    #[test]
    fn files_in_etc_are_told_by_their_destination() {
        let found = classify(Path::new("/run/x/resolv.conf"), Path::new("/etc/resolv.conf"));
        assert_eq!(found, Source::Other(VolumeKind::EtcFile));
    }

    #[test]
    fn backing_is_told_by_the_filesystem() {
        assert_eq!(Backing::of(Path::new("/proc")), Backing::Disk);
        assert_eq!(Backing::of(Path::new("/does/not/exist")), Backing::Absent);
        let Backing::Memory(tmpfs) = Backing::of(Path::new("/dev/shm")) else { panic!("no tmpfs") };
        assert_eq!(tmpfs.mode, 0o1777);
    }
}
