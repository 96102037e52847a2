//! `cargo xtask install`: builds and lays down what a node needs, on this machine or below a folder, and takes it away.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use install::Architecture;
use install::guest::{self, Build, Policy};
use install::installer::{self, Containerd, Parts, Report};

use crate::workspace::Workspace;
use crate::{build, packages};

#[derive(Debug, clap::Args)]
pub(crate) struct Install {
    /// Install below this folder instead of /
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// Take away what was installed there
    #[arg(long)]
    uninstall: bool,
}

pub(crate) fn run(workspace: &Workspace, install: &Install) -> Result<()> {
    let report = if install.uninstall {
        installer::uninstall(&install.root)?
    } else {
        lay_down(workspace, &install.root, Containerd::detect(&install.root)?)?
    };
    print(&report);
    Ok(())
}

/// Installs below a fresh folder that will be laid over a test host's tree, whose containerd is of version 2.
pub(crate) fn into(workspace: &Workspace, root: &Path) -> Result<()> {
    std::fs::create_dir_all(root).with_context(|| format!("Could not make {}", root.display()))?;
    lay_down(workspace, root, Containerd::V2).map(drop)
}

fn lay_down(workspace: &Workspace, root: &Path, containerd: Containerd) -> Result<Report> {
    let programs = build::run(workspace)?;
    packages::need(packages::TESTHOST)?;
    let guest = workspace.target.join("guest");
    let built = guest::build(&Build {
        architecture: Architecture::host()?,
        agent: programs.join("microvm-agent"),
        cache: guest.join("cache"),
        out: guest.join("assets"),
        policy: Policy::default(),
    })?;
    for warning in &built.warnings {
        println!("    {warning}");
    }
    let ctl = programs.join("microvmctl");
    let parts = Parts {
        shim: programs.join("containerd-shim-microvm-v1"),
        config: config(&ctl)?,
        ctl,
        assets: built.assets,
        containerd,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    installer::install(root, &parts)
}

/// The text of a config with all defaults: `microvmctl` knows it, and was just built.
fn config(ctl: &Path) -> Result<String> {
    let output = Command::new(ctl)
        .arg("config")
        .output()
        .with_context(|| format!("Could not run {}", ctl.display()))?;
    if !output.status.success() {
        bail!("{} config failed: {}", ctl.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("The config is not UTF-8")
}

fn print(report: &Report) {
    for line in &report.done {
        println!("    {line}");
    }
    for note in &report.notes {
        println!("    note: {note}");
    }
}
