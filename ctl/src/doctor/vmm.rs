//! The guest's assets, the VMMs and KVM. Called by `doctor`.

use std::path::Path;

use install::assets::Assets;
use shim::Config;
use shim::config::{Accelerator, VmmChoice};
use shim::vm::Host;

use super::Finding;

/// Oldest QEMU that saves and restores vhost-user file systems.
const OLDEST_QEMU: (u32, u32) = (8, 2);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![assets(config), virtiofsd(config)];
    match shim::vm::examine(config).await {
        Ok(host) => {
            findings.extend(vmms(config, &host));
            findings.push(kvm(config, &host));
        }
        Err(error) => findings.push(Finding::broken("vmm", error.chain(), "")),
    }
    findings
}

/// The VMMs that the config may choose.
fn vmms(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if config.vmm() != VmmChoice::Qemu {
        findings.push(cloud_hypervisor(config, host));
    }
    if config.vmm() != VmmChoice::CloudHypervisor {
        findings.push(qemu(config, host));
    }
    findings
}

fn assets(config: &Config) -> Finding {
    const CHECK: &str = "guest";
    if let (Some(kernel), Some(initramfs)) = (config.kernel(), config.initramfs()) {
        return own_assets(kernel, initramfs);
    }
    let found = Assets::load(config.guest_dir()).and_then(|assets| assets.verify().map(|()| assets));
    match found {
        Ok(assets) => {
            let text =
                format!("version {} in {}, checksums right", assets.version, assets.directory.display());
            Finding::ok(CHECK, text)
        }
        Err(error) => Finding::broken(CHECK, chain(&error), ""),
    }
}

/// The error with its causes; what to do is in its text.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn own_assets(kernel: &Path, initramfs: &Path) -> Finding {
    for (key, path) in [("kernel", kernel), ("initramfs", initramfs)] {
        if let Err(error) = std::fs::File::open(path) {
            let text = format!("Could not open {}: {error}", path.display());
            return Finding::broken("guest", text, format!("the key `{key}` of the config names it"));
        }
    }
    Finding::ok("guest", format!("{} and {} of the config", kernel.display(), initramfs.display()))
}

fn virtiofsd(config: &Config) -> Finding {
    const CHECK: &str = "virtiofsd";
    let Some(path) = config.virtiofsd_path() else {
        return Finding::ok(CHECK, "the one in the shim's binary");
    };
    match nix::unistd::access(path, nix::unistd::AccessFlags::X_OK) {
        Ok(()) => Finding::ok(CHECK, path.display().to_string()),
        Err(error) => {
            let text = format!("{} can't be executed: {error}", path.display());
            Finding::broken(CHECK, text, "correct `virtiofsd_path` in the config, or leave it out")
        }
    }
}

fn cloud_hypervisor(config: &Config, host: &Host) -> Finding {
    const CHECK: &str = "cloud-hypervisor";
    match (host.cloud_hypervisor(), config.vmm()) {
        (Ok(version), _) => {
            Finding::ok(CHECK, format!("{} {version}", config.cloud_hypervisor_path().display()))
        }
        (Err(error), VmmChoice::CloudHypervisor) => Finding::broken(
            CHECK,
            error.chain(),
            "or set `vmm = \"auto\"` in the config, which takes QEMU then",
        ),
        (Err(error), _) => Finding::ok(CHECK, format!("not used, QEMU is: {}", error.chain())),
    }
}

fn qemu(config: &Config, host: &Host) -> Finding {
    const CHECK: &str = "qemu";
    let version = match host.qemu() {
        Ok(version) => version,
        Err(error) if host.cloud_hypervisor().is_ok() && host.kvm().is_ok() => {
            return Finding::ok(CHECK, format!("not used, Cloud Hypervisor is: {}", error.chain()));
        }
        Err(error) => {
            let hint = "install qemu-system-x86 (or -arm), or set `qemu_path` in the config";
            return Finding::broken(CHECK, error.chain(), hint);
        }
    };
    let text = format!("{} {version}", config.qemu_path().display());
    let (major, minor) = OLDEST_QEMU;
    match parse(version) {
        Some(found) if found >= OLDEST_QEMU => Finding::ok(CHECK, text),
        _ => Finding::broken(
            CHECK,
            text,
            format!("install QEMU {major}.{minor} or newer: older ones can't checkpoint a pod's files"),
        ),
    }
}

/// Major and minor of `11.1.2`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let mut next = || parts.next()?.parse().ok();
    Some((next()?, next()?))
}

fn kvm(config: &Config, host: &Host) -> Finding {
    const CHECK: &str = "kvm";
    match (host.kvm(), config.accelerator()) {
        (Ok(()), Accelerator::Tcg) => {
            Finding::poor(CHECK, "works, but the config wants emulation", "set `accelerator = \"auto\"`")
        }
        (Ok(()), _) => Finding::ok(CHECK, "a kernel boots under it"),
        (Err(error), Accelerator::Kvm) => {
            let hint = "set `accelerator = \"auto\"` to emulate, or make KVM work";
            Finding::broken(CHECK, error.chain(), hint)
        }
        (Err(error), Accelerator::Tcg) => {
            Finding::ok(CHECK, format!("not used, as the config wants; it does not work: {}", error.chain()))
        }
        (Err(error), Accelerator::Auto) if config.vmm() == VmmChoice::CloudHypervisor => {
            let hint = "set `vmm = \"auto\"` to emulate by QEMU, or make KVM work";
            Finding::broken(CHECK, error.chain(), hint)
        }
        (Err(error), Accelerator::Auto) => Finding::poor(
            CHECK,
            format!("does not work, pods are emulated: {}", error.chain()),
            "emulation is several times slower; use a host with hardware virtualisation for speed",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(parse("11.1.2"), Some((11, 1)));
        assert!(parse("10.0.0") >= Some(OLDEST_QEMU));
        assert!(parse("8.1.9") < Some(OLDEST_QEMU));
        assert_eq!(parse("unknown"), None);
    }
}
