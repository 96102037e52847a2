//! The guest's assets, QEMU and KVM. Called by `doctor`.

use std::path::Path;

use install::assets::Assets;
use shim::Config;
use shim::config::Accelerator;

use super::Finding;

/// Oldest QEMU that saves and restores vhost-user file systems.
const OLDEST_QEMU: (u32, u32) = (8, 2);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![assets(config), virtiofsd(config)];
    match shim::vm::examine(config).await {
        Ok(host) => {
            findings.push(qemu(config, &host.version));
            findings.push(kvm(config, &host));
        }
        Err(error) => {
            let hint = "install qemu-system-x86 (or -arm), or set `qemu_path` in the config";
            findings.push(Finding::broken("qemu", error.chain(), hint));
        }
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

fn qemu(config: &Config, version: &str) -> Finding {
    const CHECK: &str = "qemu";
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

fn kvm(config: &Config, host: &shim::vm::Host) -> Finding {
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
