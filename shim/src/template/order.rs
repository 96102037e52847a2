//! Has a template made by a process of its own, which outlives the pod that was the first of its kind. Called by
//! `sandbox` after a start from the kernel, and by `microvmctl`.

use std::path::Path;
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::MODE;
use crate::config::Source;
use crate::error::{Context, Result};

/// What to make. One argument of the process, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The config of the pods that it is for.
    pub config: Source,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Number of network devices.
    pub nics: usize,
}

impl Order {
    /// Starts `program`, the shim's binary, to make it, and returns. A task logs how it ends, if it lives so long.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn place(&self, program: &Path) -> Result<()> {
        let mut command = Command::new(program);
        command.arg0("containerd-shim-microvm-v1").arg(MODE).arg(self.argument()?);
        command.current_dir("/").process_group(0).kill_on_drop(false);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().context(|| "Could not start the making of a template".into())?;
        tokio::spawn(async move {
            match child.wait_with_output().await {
                Ok(output) if output.status.success() => {
                    log::info!("There is a template now for pods like this one");
                }
                Ok(output) => {
                    let words = String::from_utf8_lossy(&output.stderr);
                    log::warn!("No template was made for pods like this one: {}", words.trim());
                }
                Err(error) => log::warn!("Could not wait for the making of a template: {error}"),
            }
        });
        Ok(())
    }

    /// As the process's argument.
    ///
    /// # Errors
    /// None that happens: an order can be written as JSON.
    pub fn argument(&self) -> Result<String> {
        serde_json::to_string(self).context(|| "Could not express the order of a template as JSON".into())
    }
}
