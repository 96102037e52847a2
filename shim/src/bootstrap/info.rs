//! `-v` and `-info`: what this runtime is, and what it can do.

use std::io;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::error::{Context, Result};

const NAME: &str = "io.containerd.microvm.v1";
/// containerd knows the runtime specification's features by this name only, with a JSON value.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// What the guest's agent understands (`agent/src/container/plan/mounts.rs`). `rro` makes CRI offer mounts that are
/// read-only all the way down.
const MOUNT_OPTIONS: &[&str] = &[
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "relatime",
    "rexec",
    "rnodev",
    "rnoexec",
    "rnosuid",
    "ro",
    "rprivate",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rsuid",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "unbindable",
];
/// The hooks that run on the host; those of the container's own namespaces would need the host's files in the guest.
const HOOKS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];
/// Namespaces that a container can have of its own inside the guest. No `user`: that would promise mapped images.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mount", "network", "pid", "uts"];

pub(super) fn version() -> String {
    format!("containerd-shim-microvm-v1:\n  Version: {}\n  Runtime: {NAME}\n", env!("CARGO_PKG_VERSION"))
}

/// `RuntimeInfo`, bare as containerd wants it. stdin may hold options; nothing here depends on them.
pub(super) fn encoded() -> Result<Vec<u8>> {
    // Read to the end all the same: containerd's write must not fail.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    let value = features().to_string().into_bytes();
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let info = RuntimeInfo {
        name: NAME.into(),
        version: MessageField::some(version),
        features: MessageField::some(Any { type_url: FEATURES.into(), value, ..Default::default() }),
        ..Default::default()
    };
    info.write_to_bytes().context(|| "Could not encode the runtime's description".into())
}

fn features() -> serde_json::Value {
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": HOOKS,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": NAMESPACES,
            // The guest's own; the host's version is of no consequence.
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
    })
}
