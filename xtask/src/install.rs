//! `cargo xtask install`: builds and lays down what a node needs, on this machine or below a folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::build;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Install {
    /// Install below this folder instead of /
    #[arg(long, default_value = "/")]
    root: PathBuf,
}

/// Where the programs go, found by containerd's search path.
const PROGRAMS: &str = "usr/local/bin";

pub(crate) fn run(workspace: &Workspace, install: &Install) -> Result<()> {
    into(workspace, &install.root)
}

/// Installs below `root`.
pub(crate) fn into(workspace: &Workspace, root: &Path) -> Result<()> {
    let built = build::run(workspace)?;
    let folder = root.join(PROGRAMS);
    std::fs::create_dir_all(&folder).with_context(|| format!("Could not make {}", folder.display()))?;
    for program in ["containerd-shim-microvm-v1", "microvmctl"] {
        let target = folder.join(program);
        std::fs::copy(built.join(program), &target)
            .with_context(|| format!("Could not install {}", target.display()))?;
    }
    Ok(())
}
