//! The Linux part of an OCI spec → guest: devices, cgroup path, sysctls, paths to mask. Called by the translation.

use std::path::Path;

use agent_proto::oci;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Spec};

use super::{namespaces, resources, seccomp};
use crate::error::{Error, Kind, Result};

/// Character devices that are the same in every kernel, and that a guest can have: path, major, minor
/// (Documentation/admin-guide/devices.txt).
const STANDARD: &[(&str, i64, i64)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
    ("/dev/console", 5, 1),
    ("/dev/ptmx", 5, 2),
    ("/dev/net/tun", 10, 200),
    ("/dev/fuse", 10, 229),
];
/// Major numbers of `/dev/pts/*`.
const PTS_MAJORS: std::ops::RangeInclusive<i64> = 136..=143;

/// Translates it, and answers the devices that were dropped.
pub(super) fn linux(spec: &Spec, id: &str) -> Result<(oci::Linux, Vec<String>)> {
    let Some(linux) = spec.linux() else {
        return Ok((oci::Linux { CgroupsPath: cgroup(id), ..Default::default() }, Vec::new()));
    };
    let (devices, dropped) = devices(linux)?;
    let guest = oci::Linux {
        Sysctl: linux.sysctl().clone().unwrap_or_default(),
        Resources: linux.resources().as_ref().map(resources::resources).into(),
        CgroupsPath: cgroup(id),
        Namespaces: namespaces::guest(spec),
        Devices: devices,
        Seccomp: linux.seccomp().as_ref().map(seccomp::seccomp).into(),
        RootfsPropagation: linux.rootfs_propagation().clone().unwrap_or_default(),
        MaskedPaths: linux.masked_paths().clone().unwrap_or_default(),
        ReadonlyPaths: linux.readonly_paths().clone().unwrap_or_default(),
        ..Default::default()
    };
    Ok((guest, dropped))
}

/// Whether the numbers mean the same character device in the guest; -1 stands for all minors.
pub(super) fn is_standard(major: i64, minor: i64) -> bool {
    PTS_MAJORS.contains(&major) || STANDARD.iter().any(|device| (device.1, device.2) == (major, minor))
}

/// The container's cgroup in the guest, which knows nothing of the host's.
fn cgroup(id: &str) -> String {
    format!("/microvm/{id}")
}

/// Device nodes for the guest and the paths of those that a privileged container does without.
///
/// # Errors
/// `InvalidArgument` when an unprivileged container asks for a device of the host, which it must really need.
fn devices(linux: &Linux) -> Result<(Vec<oci::LinuxDevice>, Vec<String>)> {
    let all = linux.devices().iter().flatten();
    let (standard, other): (Vec<_>, Vec<_>) = all.partition(|device| {
        device.typ() == LinuxDeviceType::C && is_standard(device.major(), device.minor())
    });
    let other: Vec<_> = other.into_iter().map(|device| device.path().display().to_string()).collect();
    if !other.is_empty() && !is_privileged(linux) {
        let text = format!(
            "The container asks for devices of the host, which a micro-VM does not get: {}; remove them",
            other.join(", ")
        );
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    Ok((standard.into_iter().map(device).collect(), other))
}

/// Privileged containers get a rule that allows every device, and then a node for each device of the host.
fn is_privileged(linux: &Linux) -> bool {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    rules.into_iter().flatten().any(|rule| {
        rule.allow()
            && rule.typ().is_none_or(|typ| typ == LinuxDeviceType::A)
            && rule.major().is_none_or(|major| major < 0)
            && rule.minor().is_none_or(|minor| minor < 0)
    })
}

fn device(device: &LinuxDevice) -> oci::LinuxDevice {
    oci::LinuxDevice {
        Path: in_container(device.path()),
        Type: device.typ().as_str().into(),
        Major: device.major(),
        Minor: device.minor(),
        FileMode: device.file_mode().unwrap_or(0o666),
        UID: device.uid().unwrap_or_default(),
        GID: device.gid().unwrap_or_default(),
        ..Default::default()
    }
}

/// A path that is meant inside the container, as text.
pub(super) fn in_container(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
