//! `cargo xtask shell`: a prompt in a test host, and the way by which the other commands get into one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::workspace::{Workspace, step};
use crate::{install, packages};

#[derive(Debug, clap::Args)]
pub(crate) struct Shell {
    /// Leave the shim out: a plain containerd with runc
    #[arg(long)]
    runc: bool,
    /// Run this command instead of a prompt
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, shell: &Shell) -> Result<ExitCode> {
    let mut arguments = vec!["shell", "--"];
    arguments.extend(shell.command.iter().map(String::as_str));
    testhost(workspace, !shell.runc, &arguments)
}

/// Runs the `testhost` program, with our shim installed in the test host or not.
pub(crate) fn testhost(workspace: &Workspace, with_shim: bool, arguments: &[&str]) -> Result<ExitCode> {
    packages::need(packages::BUILD)?;
    packages::need(packages::TESTHOST)?;
    let root = if with_shim { installed(workspace)? } else { empty(workspace)? };
    let options = [
        "--target".into(),
        workspace.target.clone().into_os_string(),
        "--installed".into(),
        root.into_os_string(),
    ];
    step(
        "Build the test host's program",
        &mut workspace.cargo(&["build", "--quiet", "--locked", "-p", "tests"]),
    )?;
    let status = std::process::Command::new(workspace.target.join("debug/testhost"))
        .args(options)
        .args(arguments)
        .status()
        .context("Could not run the test host's program")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// A folder laid out as `cargo xtask install --root` does, fresh.
pub(crate) fn installed(workspace: &Workspace) -> Result<PathBuf> {
    let root = empty(workspace)?;
    install::into(workspace, &root)?;
    Ok(root)
}

/// A folder to lay over the test host's tree, with nothing in it.
pub(crate) fn empty(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.target.join("testhost/installed");
    if root.exists() {
        std::fs::remove_dir_all(&root).with_context(|| format!("Could not remove {}", root.display()))?;
    }
    std::fs::create_dir_all(&root).with_context(|| format!("Could not make {}", root.display()))?;
    Ok(root)
}
