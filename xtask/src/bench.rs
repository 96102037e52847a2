//! `cargo xtask bench`: builds, installs into a test host, and measures microvm beside runc there.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::workspace::{Workspace, step};
use crate::{packages, shell};

#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// Measure only figures whose name contains this (`ctr-run`, `exec`, `still`, …; a wrong one lists them)
    #[arg(long, value_name = "FIGURE")]
    only: Option<String>,
    /// Samples of each latency; what takes long has fewer
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Write all samples and the machine's facts to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, bench: &Bench) -> Result<ExitCode> {
    packages::need(packages::BUILD)?;
    packages::need(packages::TESTHOST)?;
    let installed = shell::installed(workspace)?;
    let build = ["build", "--quiet", "--locked", "-p", "tests", "--bin", "bench"];
    step("Build the bench", &mut workspace.cargo(&build))?;
    let mut program = Command::new(workspace.target.join("debug/bench"));
    program.arg("--target").arg(&workspace.target).arg("--installed").arg(installed);
    program.args(["--rounds", &bench.rounds.to_string(), "--commit", &commit(workspace)?]);
    if let Some(only) = &bench.only {
        program.args(["--only", only]);
    }
    if let Some(json) = &bench.json {
        program.arg("--json").arg(std::path::absolute(json)?);
    }
    let status = program.status().context("Could not run the bench")?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}

/// Which source was built, for the report.
fn commit(workspace: &Workspace) -> Result<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(&workspace.root)
        .output()
        .context("Could not run git")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(if output.status.success() { text } else { "unknown".into() })
}
