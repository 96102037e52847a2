//! Freezes and thaws all containers, around a snapshot and after a restore.

use std::sync::Arc;

use super::{Entry, Sandbox, runs};
use crate::container::Container;
use crate::error::{Error, Result};

impl Sandbox {
    /// Freezes every running container; answers the ids of those it froze.
    ///
    /// # Errors
    /// The first container that could not be frozen; what was frozen by then runs again.
    pub async fn freeze_all(&self) -> Result<Vec<String>> {
        let mut frozen = Vec::new();
        for container in self.running() {
            if let Err(error) = container.pause().await {
                // Not failed but ended meanwhile: nothing is left to freeze.
                if !runs(&container) {
                    continue;
                }
                let text = format!("Could not freeze container {}", container.id());
                self.thaw_logged(&frozen).await;
                return Err(Error::caused(error.kind(), text, error));
            }
            frozen.push(container.id().to_owned());
        }
        Ok(frozen)
    }

    /// Thaws containers; one that has gone or runs already is passed over.
    ///
    /// # Errors
    /// The first container that stays frozen; all have been tried.
    pub async fn thaw_all(&self, ids: &[String]) -> Result<()> {
        let mut result = Ok(());
        for id in ids {
            let Ok(container) = self.container(id) else { continue };
            if runs(&container) {
                continue;
            }
            let thawed = container.resume().await;
            let is_left = matches!(container.state(""), Ok(crate::container::State::Paused));
            if let (Err(error), true) = (thawed, is_left) {
                let text = format!("Could not thaw container {id}");
                result = result.and(Err(Error::caused(error.kind(), text, error)));
            }
        }
        result
    }

    async fn thaw_logged(&self, ids: &[String]) {
        if let Err(error) = self.thaw_all(ids).await {
            log::error!("{}", error.chain());
        }
    }

    fn running(&self) -> Vec<Arc<Container>> {
        let state = self.state();
        let workloads = state.containers.values().filter_map(|entry| match entry {
            Entry::Workload(container, _) => Some(container.clone()),
            _ => None,
        });
        workloads.filter(|container| runs(container)).collect()
    }
}
