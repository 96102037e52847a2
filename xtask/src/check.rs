//! `cargo xtask check`: everything that needs no running code.

use std::process::Stdio;

use anyhow::{Result, bail};

use crate::packages;
use crate::workspace::{Workspace, is_ci, step};
use crate::{licences, tidy};

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    tidy::run(workspace)?;
    if has(workspace, "fmt", "rustfmt")? {
        step("Check the formatting", &mut workspace.cargo(&["fmt", "--all", "--check"]))?;
    }
    packages::need(packages::BUILD)?;
    licences::run(workspace)?;
    if has(workspace, "clippy", "clippy")? {
        let arguments =
            ["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
        step("Check with clippy", &mut workspace.cargo(&arguments))?;
    }
    let arguments = ["doc", "--quiet", "--locked", "--workspace", "--no-deps", "--document-private-items"];
    step("Check the documentation", workspace.cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Whether cargo has a command. In CI it must; elsewhere the check is left out, and said to be.
fn has(workspace: &Workspace, command: &str, component: &str) -> Result<bool> {
    let mut probe = workspace.cargo(&[command, "--version"]);
    if probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return Ok(true);
    }
    let how = format!("`rustup component add {component}` brings cargo {command}");
    if is_ci() {
        bail!("cargo {command} is missing: {how}");
    }
    println!("==> Left out: cargo {command} is missing; {how}");
    Ok(false)
}
