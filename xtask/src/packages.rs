//! Debian packages that a build or a test host needs, installed when they are missing. Called by the commands that need
//! them.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::workspace::step;

/// Needed to compile the workspace.
pub(crate) const BUILD: &[&str] =
    &["gcc", "libc6-dev", "libcap-ng-dev", "libseccomp-dev", "protobuf-compiler"];

/// Needed to make the test host and the guest's kernel and initramfs.
pub(crate) const TESTHOST: &[&str] = &["dpkg-dev", "mmdebstrap", "xz-utils"];

/// Installs what is missing of `wanted`.
pub(crate) fn need(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_err() {
        bail!("These Debian packages are needed, and this machine has no apt-get: {}", missing.join(", "));
    }
    let options = ["-q", "-o", "DPkg::Lock::Timeout=300"];
    step("Read apt's package lists", Command::new("apt-get").args(options).arg("update"))?;
    step(
        &format!("Install {}", missing.join(", ")),
        Command::new("apt-get")
            .args(options)
            .args(["-y", "install", "--no-install-recommends"])
            .args(missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
