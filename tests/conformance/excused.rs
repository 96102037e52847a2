//! Specs that a runtime is not held to, each with the reason and the code that says no. Called by `critest.rs`.

/// A spec that is left out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Excuse {
    /// Part of the spec's full name.
    pub(crate) spec: &'static str,
    /// Why, in one line.
    pub(crate) reason: &'static str,
    /// Where the refusal is, and is clear; empty for what the test host lacks.
    pub(crate) refused_by: &'static str,
}

const HOST_NAMESPACES: &str = "shim/src/guest/spec/namespaces.rs";

/// What a micro-VM can't do.
const MICROVM: &[Excuse] = &[
    Excuse {
        spec: "runtime should support HostPID",
        reason: "the host's processes are not in a VM",
        refused_by: HOST_NAMESPACES,
    },
    Excuse {
        spec: "runtime should support HostIpc is true",
        reason: "the host's shared memory is not in a VM",
        refused_by: HOST_NAMESPACES,
    },
    Excuse {
        spec: "runtime should support HostNetwork is true",
        reason: "a VM has network devices of its own",
        refused_by: HOST_NAMESPACES,
    },
    Excuse {
        spec: "runtime should support portforward in host network",
        reason: "a VM has network devices of its own",
        refused_by: HOST_NAMESPACES,
    },
    Excuse {
        spec: "mount with 'rshared' should support propagation",
        reason: "mounts made in a VM can't appear on the host",
        refused_by: "shim/src/guest/spec/mounts.rs",
    },
    Excuse {
        spec: "should support non-recursive readonly mounts",
        reason: "a read-only volume is read-only with all that is mounted below it: the host keeps it so, not the guest",
        refused_by: "shim/src/share/tree.rs",
    },
    Excuse {
        spec: "recursive readonly mount",
        reason: "containerd asks no runtime but runc for its features, so CRI offers no recursive read-only mounts",
        refused_by: "",
    },
    Excuse {
        spec: "Security Context UserNamespaces",
        reason: "not offered: what user ids mean to images and volumes in a VM is the guest's affair",
        refused_by: "shim/src/guest/spec/check.rs",
    },
];

/// What neither runtime can do in the test host.
const TEST_HOST: &[Excuse] = &[
    Excuse {
        spec: "public image with digest should be pulled and removed",
        reason: "an image with the suite's own digest can't be made",
        refused_by: "",
    },
    Excuse {
        spec: "runtime should support MaskedPaths",
        reason: "Debian's busybox has `ls` in its shell, so masking /bin/ls changes nothing; e2e tests mask another file",
        refused_by: "",
    },
];

/// What `handler` is not held to.
pub(crate) fn excuses(handler: &str) -> Vec<Excuse> {
    if handler == "runc" { TEST_HOST.to_vec() } else { [MICROVM, TEST_HOST].concat() }
}
