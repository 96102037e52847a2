//! Cloud Hypervisor's description of a machine, as `vm.create` takes it: what a pod needs and no more. A field that
//! is absent here is not sent, so that the VMM's own default holds. Pure; called by [`super::CloudHypervisor`]'s
//! machines only.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Files;
use crate::error::{Error, Kind, Result};
use crate::vm::Machine;

/// The guest's address on its vsock. Each machine has a socket of its own on the host, so all may have the same.
const GUEST_CID: u32 = 3;
/// PCI segment of the virtio-fs devices, away from the others, as kata's guests know it.
const SHARES_SEGMENT: u16 = 1;
/// PCI segments of a machine that has such devices.
const SEGMENTS: u16 = 2;
/// virtio's name for a tag has this many bytes.
const TAG: usize = 36;

/// The whole machine.
#[derive(Debug, Clone, Serialize)]
pub(super) struct VmConfig {
    cpus: Cpus,
    memory: Memory,
    payload: Payload,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    net: Vec<Net>,
    rng: Rng,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fs: Vec<Fs>,
    serial: Console,
    console: Console,
    vsock: Vsock,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    landlock_enable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    landlock_rules: Vec<LandlockRule>,
}

#[derive(Debug, Clone, Serialize)]
struct Cpus {
    boot_vcpus: u32,
    max_vcpus: u32,
}

/// RAM is the file of one zone, so the size outside of zones is 0.
#[derive(Debug, Clone, Serialize)]
struct Memory {
    size: u64,
    zones: [Zone; 1],
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Zone {
    id: &'static str,
    size: u64,
    file: PathBuf,
    shared: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Payload {
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
}

#[derive(Debug, Clone, Serialize)]
struct Net {
    id: String,
    tap: String,
    mac: String,
}

#[derive(Debug, Clone, Serialize)]
struct Rng {
    src: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct Fs {
    id: String,
    tag: String,
    socket: PathBuf,
    num_queues: u16,
    queue_size: u16,
    pci_segment: u16,
}

#[derive(Debug, Clone, Serialize)]
struct Console {
    mode: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct Vsock {
    id: &'static str,
    cid: u32,
    socket: PathBuf,
}

#[derive(Debug, Clone, Serialize)]
struct Platform {
    num_pci_segments: u16,
}

/// What the VMM may reach besides the paths of its devices.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LandlockRule {
    path: PathBuf,
    access: &'static str,
}

/// The body of `vm.create` for `machine`.
///
/// # Errors
/// `InvalidArgument` for what can't be a part of a machine.
pub(super) fn of(machine: &Machine, files: &Files, landlock: bool) -> Result<VmConfig> {
    check(machine)?;
    let net = machine.nics.iter().enumerate();
    let fs = machine.shares.iter().enumerate();
    Ok(VmConfig {
        cpus: Cpus { boot_vcpus: machine.vcpus, max_vcpus: machine.vcpus },
        memory: Memory {
            size: 0,
            zones: [Zone { id: "ram", size: machine.memory, file: machine.ram.clone(), shared: true }],
        },
        payload: Payload {
            kernel: machine.kernel.clone(),
            initramfs: machine.initramfs.clone(),
            cmdline: parameters(std::env::consts::ARCH, &machine.kernel_params),
        },
        net: net
            .map(|(number, nic)| Net {
                id: format!("net{number}"),
                tap: nic.tap.clone(),
                mac: nic.mac.clone(),
            })
            .collect(),
        rng: Rng { src: "/dev/urandom" },
        fs: fs
            .map(|(number, share)| Fs {
                id: format!("fs{number}"),
                tag: share.tag.clone(),
                socket: share.socket.clone(),
                num_queues: 1,
                queue_size: 1024,
                pci_segment: SHARES_SEGMENT,
            })
            .collect(),
        serial: Console { mode: "Off" },
        // The VMM's stdout, which is a pipe into our bounded log.
        console: Console { mode: "Tty" },
        vsock: Vsock { id: "vsock", cid: GUEST_CID, socket: files.vsock() },
        platform: (!machine.shares.is_empty()).then_some(Platform { num_pci_segments: SEGMENTS }),
        landlock_enable: landlock,
        landlock_rules: if landlock { rules(files) } else { Vec::new() },
    })
}

/// What the VMM may reach besides its devices' files, which it allows itself: where it leaves a device state.
pub(super) fn rules(files: &Files) -> Vec<LandlockRule> {
    vec![LandlockRule { path: files.state(), access: "rw" }]
}

/// Kernel parameters of every guest: the console and the agent's channel are ours, a panic ends the machine at once.
fn parameters(architecture: &str, more: &str) -> String {
    let mut all =
        "console=hvc0 quiet panic=-1 microvm.agent=vsock cgroup_no_v1=all cryptomgr.notests".to_owned();
    if architecture == "x86_64" {
        // A reset through the keyboard controller is at once; ACPI is tried first otherwise.
        all += " reboot=k";
    }
    if !more.is_empty() {
        all.push(' ');
        all += more;
    }
    all
}

fn check(machine: &Machine) -> Result<()> {
    let refuse = |text: String| Err(Error::new(Kind::InvalidArgument, text));
    for share in &machine.shares {
        if share.tag.is_empty() || share.tag.len() > TAG {
            return refuse(format!("{:?} is no tag of a virtio-fs device", share.tag));
        }
    }
    let shares = machine.shares.iter().map(|share| &share.socket);
    for path in [&machine.dir, &machine.kernel, &machine.initramfs, &machine.ram].into_iter().chain(shares) {
        utf8(path)?;
    }
    Ok(())
}

/// The path as a text, as it stands in a request.
pub(super) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().filter(|_| path.is_absolute()).ok_or_else(|| {
        let text = format!(
            "Cloud Hypervisor can't be given the path {}: it is not absolute or not UTF-8",
            path.display()
        );
        Error::new(Kind::InvalidArgument, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::cloud_hypervisor::tests::machine;

    fn body(machine: &Machine, landlock: bool) -> String {
        let files = Files::of(&machine.dir);
        serde_json::to_string_pretty(&of(machine, &files, landlock).unwrap()).unwrap()
    }

    #[test]
    fn a_machine_to_boot() {
        insta::assert_snapshot!(body(&machine(), true));
    }

    #[test]
    fn without_shares_there_is_no_trace_of_them() {
        let bare = Machine { shares: Vec::new(), nics: Vec::new(), ..machine() };
        insta::assert_snapshot!(body(&bare, false));
    }

    #[test]
    fn an_arm64_guest_is_told_the_same_but_how_to_reset() {
        let [amd64, arm64] = ["x86_64", "aarch64"].map(|architecture| parameters(architecture, "more"));
        assert_eq!(
            arm64,
            "console=hvc0 quiet panic=-1 microvm.agent=vsock cgroup_no_v1=all cryptomgr.notests more"
        );
        assert_eq!(amd64.replace(" reboot=k", ""), arm64);
    }

    #[test]
    fn sizes_are_exact_up_to_the_last_bit() {
        let big = Machine { memory: u64::MAX - 1, ..machine() };
        assert!(body(&big, false).contains("\"size\": 18446744073709551614,"));
    }

    #[test]
    fn what_no_machine_can_have_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            let error = of(&machine, &Files::of(&machine.dir), true).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            error.chain()
        };
        let long = "x".repeat(37);
        assert!(refused(&|machine| machine.shares[0].tag.clone_from(&long)).contains(&long));
        assert!(refused(&|machine| machine.kernel = "vmlinux".into()).contains("path vmlinux"));
    }
}
