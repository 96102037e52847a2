//! `cargo xtask build`: the programs that a node needs, static, so that they run on any distribution and in the guest.

use std::path::PathBuf;

use anyhow::Result;

use crate::packages;
use crate::workspace::{Workspace, step};

/// The packages whose programs are installed.
const PROGRAMS: &[&str] = &["microvm-agent", "containerd-shim-microvm-v1", "microvmctl"];

/// Builds; the folder that then holds the programs.
pub(crate) fn run(workspace: &Workspace) -> Result<PathBuf> {
    packages::need(packages::BUILD)?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let mut cargo = workspace.cargo(&["build", "--locked", "--release", "--target", &triple]);
    for program in PROGRAMS {
        cargo.args(["--package", program]);
    }
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", &libraries)
        .env("LIBCAPNG_LINK_TYPE", "static")
        .env("LIBCAPNG_LIB_PATH", &libraries);
    step(&format!("Build {}", PROGRAMS.join(", ")), &mut cargo)?;
    Ok(workspace.target.join(triple).join("release"))
}
