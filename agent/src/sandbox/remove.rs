//! Removes a container and all that the guest keeps for it.

use super::{Entry, Sandbox, busy, unknown};
use crate::error::{Error, Kind, Result};

impl Sandbox {
    /// Kills what still runs, takes off its mounts and lets go of its part of the share.
    ///
    /// # Errors
    /// `NotFound` for an unknown id. After any other failure the container is still there, and may be removed again.
    pub async fn remove(&self, id: &str) -> Result<()> {
        let entry = self.take(id)?;
        let removed = match &entry {
            Entry::Carrier(parts) => self.drop_parts(id, parts).await,
            Entry::Workload(container, parts) => match container.remove().await {
                Ok(()) => self.drop_parts(id, parts).await,
                failed => failed,
            },
            Entry::Busy(what) => return Err(busy(id, what)),
        };
        let mut state = self.state();
        match removed {
            Ok(()) => {
                state.containers.remove(id);
                Ok(())
            }
            Err(error) => {
                state.containers.insert(id.to_owned(), entry);
                Err(Error::caused(error.kind(), format!("Could not remove container {id}"), error))
            }
        }
    }

    /// Takes a container for removal; nobody else can remove it meanwhile. Its carrier must outlive a workload.
    fn take(&self, id: &str) -> Result<Entry> {
        let mut state = self.state();
        let workload = format!("{id}_ovl");
        let is_used = state.containers.contains_key(&workload);
        let entry = state.containers.get_mut(id).ok_or_else(|| unknown(id))?;
        match entry {
            Entry::Busy(what) => return Err(busy(id, what)),
            Entry::Carrier(_) if is_used => {
                let text = format!("Carrier {id} is in use by container {workload}");
                return Err(Error::new(Kind::FailedPrecondition, text));
            }
            _ => {}
        }
        Ok(std::mem::replace(entry, Entry::Busy("removed")))
    }
}
