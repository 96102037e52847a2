//! The mounts of a test host: an overlay on the Debian tree as `/`, everything else as on a machine that has just
//! booted. Called by `init.rs`, once, in a new mount namespace.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod, umask};

use super::LOGS;
use super::instance::Spec;
use crate::cgroups::{self, Hierarchy};

/// Where the payload's program is found in the test host.
pub(super) const PAYLOAD: &str = "/opt/testhost/program";

/// Device nodes made if the machine has them: what runc, QEMU and the shim open.
const DEVICES: &[&str] = &[
    "full",
    "fuse",
    "kvm",
    "net/tun",
    "null",
    "random",
    "tty",
    "urandom",
    "vhost-net",
    "vhost-vsock",
    "zero",
];

/// Builds the mounts and makes them this process' root.
pub(super) fn enter(spec: &Spec, hierarchies: &[Hierarchy]) -> Result<()> {
    let root = spec.folder.join("root");
    make_private()?;
    overlay(spec, &root)?;
    bind(&spec.folder.join("containerd"), &root.join("var/lib/containerd"))?;
    bind(&spec.logs, &root.join(LOGS.trim_start_matches('/')))?;
    bind(&spec.own_program, &root.join(PAYLOAD.trim_start_matches('/')))?;
    system(&root, "proc", "proc", "")?;
    system(&root, "sysfs", "sys", "")?;
    system(&root, "tmpfs", "run", "mode=0755")?;
    system(&root, "tmpfs", "tmp", "mode=1777")?;
    devices(&root)?;
    control_groups(&root, hierarchies)?;
    pivot(&root)?;
    share_all()?;
    settings()
}

/// Builds the mounts of a test host that is a virtual machine: a layer in memory on the root that its kernel has
/// mounted read-only. The file system with the tag `logs` gets a copy of all that shall outlive it.
pub(super) fn enter_machine(logs: &str) -> Result<()> {
    let memory = Path::new("/mnt");
    attach("memory", memory, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    let root = memory.join("root");
    for folder in ["root", "upper", "work"] {
        fs::create_dir(memory.join(folder))?;
    }
    let layers = "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work";
    attach("overlay", &root, Some("overlay"), MsFlags::empty(), Some(layers))?;
    attach(logs, &root.join(LOGS.trim_start_matches('/')), Some("virtiofs"), MsFlags::empty(), None)?;
    system(&root, "proc", "proc", "")?;
    system(&root, "sysfs", "sys", "")?;
    system(&root, "securityfs", "sys/kernel/security", "")?;
    attach("dev", &root.join("dev"), Some("devtmpfs"), MsFlags::MS_NOSUID, None)?;
    for folder in ["pts", "shm", "mqueue"] {
        fs::create_dir_all(root.join("dev").join(folder))?;
    }
    pseudo_devices(&root)?;
    for (folder, options) in [("run", "mode=0755"), ("tmp", "mode=1777")] {
        system(&root, "tmpfs", folder, options)?;
    }
    // No overlay is stacked on an overlay's upper layer.
    for folder in ["var/lib/containerd", "var/lib/microvm"] {
        attach("memory", &root.join(folder), Some("tmpfs"), MsFlags::empty(), Some("mode=0711"))?;
    }
    let v2 = Hierarchy { at: "/sys/fs/cgroup".into(), kind: "cgroup2".into(), options: String::new() };
    control_groups(&root, &[v2])?;
    pivot(&root)?;
    share_all()?;
    settings()
}

fn share_all() -> Result<()> {
    // As an init system leaves it: CNI and the shim rely on mounts that propagate.
    attach("none", Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SHARED, None)
}

/// Keeps what is mounted from now on in this namespace.
pub(super) fn make_private() -> Result<()> {
    attach("none", Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
}

/// The Debian tree with this test host's own layer.
pub(super) fn overlay(spec: &Spec, root: &Path) -> Result<()> {
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        spec.tree.display(),
        spec.folder.join("upper").display(),
        spec.folder.join("work").display()
    );
    attach("overlay", root, Some("overlay"), MsFlags::empty(), Some(&options))
}

/// Binds a file or a folder; the target is made.
fn bind(source: &Path, target: &Path) -> Result<()> {
    if source.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::File::create(target).with_context(|| format!("Could not make {}", target.display()))?;
    }
    attach(source, target, None, MsFlags::MS_BIND, None)
}

/// Mounts a filesystem of the kernel's.
pub(super) fn system(root: &Path, kind: &str, at: &str, options: &str) -> Result<()> {
    let target = root.join(at);
    fs::create_dir_all(&target)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    attach(kind, &target, Some(kind), flags, Some(options))
}

fn devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    umask(Mode::empty());
    attach("dev", &dev, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))?;
    for folder in ["net", "pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(folder))?;
    }
    for name in DEVICES {
        let Ok(there) = fs::metadata(Path::new("/dev").join(name)) else { continue };
        let mode = Mode::from_bits_truncate(there.mode());
        mknod(&dev.join(name), SFlag::S_IFCHR, mode, there.rdev())
            .with_context(|| format!("Could not make the device /dev/{name}"))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name))?;
    }
    umask(Mode::from_bits_truncate(0o022));
    pseudo_devices(root)
}

/// Terminals, shared memory and message queues.
fn pseudo_devices(root: &Path) -> Result<()> {
    let dev = root.join("dev");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=0620,gid=5");
    attach("devpts", &dev.join("pts"), Some("devpts"), flags, options)?;
    system(root, "tmpfs", "dev/shm", "mode=1777")?;
    system(root, "mqueue", "dev/mqueue", "")
}

/// Mounts the hierarchies that the machine has, at the same places; the cgroup namespace hides all but our own groups.
fn control_groups(root: &Path, hierarchies: &[Hierarchy]) -> Result<()> {
    let base = Path::new("/sys/fs/cgroup");
    let unified = hierarchies.iter().any(|hierarchy| hierarchy.at == base);
    if !unified {
        system(root, "tmpfs", "sys/fs/cgroup", "mode=0755")?;
    }
    for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.at.starts_with(base)) {
        let at = hierarchy.at.strip_prefix("/")?;
        system(root, &hierarchy.kind, &at.to_string_lossy(), &hierarchy.options)?;
    }
    if unified {
        // With v2 alone a group that hands controllers on holds no process.
        let init = root.join("sys/fs/cgroup/init.scope");
        cgroups::create(&init)?;
        cgroups::join(&init)?;
    }
    Ok(())
}

fn pivot(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    // Both at the same place: the old root lies on the new one and is taken away.
    nix::unistd::pivot_root(".", ".").context("Could not make the test host's tree the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("Could not detach the machine's tree")?;
    std::env::set_current_dir("/").context("Could not enter the new root")
}

/// Name resolution that can only come from here, so that a test sees it in a pod.
fn settings() -> Result<()> {
    fs::write("/etc/hosts", "127.0.0.1 localhost testhost\n::1 localhost\n")?;
    fs::write("/etc/hostname", "testhost\n")?;
    fs::write("/etc/resolv.conf", "nameserver 192.0.2.53\nsearch testhost.invalid\n")?;
    Ok(())
}

fn attach(
    source: impl AsRef<Path>,
    at: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<()> {
    let source = source.as_ref();
    mount(Some(source), at, kind, flags, options)
        .with_context(|| format!("Could not mount {} on {}", source.display(), at.display()))
}
