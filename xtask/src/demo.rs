//! `cargo xtask demo`: builds, installs into a test host, and shows the main job there.

use std::process::ExitCode;

use anyhow::Result;

use crate::shell::testhost;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Runtime handler: microvm, or runc for what runc can do of it
    #[arg(long, default_value = "microvm")]
    handler: String,
}

pub(crate) fn run(workspace: &Workspace, demo: &Demo) -> Result<ExitCode> {
    testhost(workspace, demo.handler != "runc", &["demo", "--handler", &demo.handler])
}
