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
    attach("none", Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
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
    // As an init system leaves it: CNI and the shim rely on mounts that propagate.
    attach("none", Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SHARED, None)?;
    settings()
}

fn overlay(spec: &Spec, root: &Path) -> Result<()> {
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

fn system(root: &Path, kind: &str, at: &str, options: &str) -> Result<()> {
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
