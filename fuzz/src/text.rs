//! Config, names and OCI specs.

use std::path::Path;

use oci_spec::runtime::Spec;
use shim::Config;
use shim::config::Source;
use shim::error::Kind;
use shim::guest::GuestName;
use shim::guest::spec::{Layout, workload};

/// A config body: it is taken, or refused as a bad argument.
///
/// # Panics
/// When that is not so.
#[must_use]
pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    match Config::load(&Source::Body(text.into()), []) {
        Ok(config) => {
            assert!(config.default_memory() <= config.max_memory() && config.default_vcpus() > 0);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
            false
        }
    }
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    vec![
        shim::config::template().into_bytes(),
        b"max_memory = \"1GiB\"\nvmm = \"qemu\"\nupper_size = \"50%\"".to_vec(),
    ]
}

/// A container's id, and the name of one in a snapshot: whatever is taken is one path component, and its two ids in the
/// guest differ.
///
/// # Panics
/// When that is not so.
#[must_use]
pub fn guest_name(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let names =
        [Some(GuestName::from_id(text)), Some(GuestName::from_cri(text)), GuestName::parse(text).ok()];
    for name in names.into_iter().flatten() {
        assert_ne!(name.carrier_id(), name.workload_id());
        assert!(
            !name.as_str().is_empty() && !name.as_str().contains(['/', '\0', '@']) && name.as_str() != ".."
        );
        assert_eq!(GuestName::parse(name.as_str()).as_ref().ok(), Some(&name), "reads back what it makes");
    }
    true
}

pub(crate) fn guest_name_seeds() -> Vec<Vec<u8>> {
    ["web", "x.a-b_ovl", "../../etc", "a_ovl", "ä/ö", "a.b@1"].map(|name| name.as_bytes().to_vec()).to_vec()
}

/// A container's OCI spec: translated for the guest, or refused.
///
/// # Panics
/// When the translation names a path of the host.
#[must_use]
pub fn oci_spec(bytes: &[u8]) -> bool {
    let Ok(spec) = serde_json::from_slice::<Spec>(bytes) else { return false };
    let layout = Layout::new(Path::new("/nowhere"), 1 << 20);
    let Ok(workload) = workload(&spec, &GuestName::from_id("fuzz"), 1, &layout) else { return false };
    let below = |path: &str| path.starts_with("/run/kata-containers/");
    assert!(below(&workload.spec.Root.Path), "{}", workload.spec.Root.Path);
    for mount in workload.spec.Mounts.iter().filter(|mount| mount.type_ == "bind") {
        assert!(below(&mount.source), "bind mount of {} in the guest", mount.source);
    }
    true
}

pub(crate) fn oci_spec_seeds() -> Vec<Vec<u8>> {
    let whole = serde_json::to_vec(&Spec::default());
    let volume = br#"{"ociVersion":"1.2.0","root":{"path":"rootfs"},"process":{"user":{"uid":0,"gid":0},"cwd":"/",
        "args":["sh"]},"mounts":[{"destination":"/etc/hosts","type":"bind","source":"/etc/hosts","options":["rbind","ro"]},
        {"destination":"/dev/shm","type":"tmpfs","source":"shm"}],"linux":{"namespaces":[{"type":"pid"}],
        "seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}}}"#;
    whole.into_iter().chain([volume.to_vec()]).collect()
}
