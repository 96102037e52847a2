//! A container that came with a snapshot gets the volumes of its new pod.

use std::path::PathBuf;
use std::sync::Arc;

use agent_proto::oci;

use super::{Entry, Parts, Sandbox};
use crate::error::Result;
use crate::storage::path;

impl Sandbox {
    /// Mounts `mounts` in the container `id`, over what it had there.
    ///
    /// # Errors
    /// `NotFound` for an unknown container, `InvalidArgument` for anything but bind mounts of the guest's own
    /// directories, else the first mount that failed.
    pub async fn rebind(&self, id: &str, mounts: Vec<oci::Mount>) -> Result<()> {
        let container = self.container(id)?;
        let sources =
            mounts.iter().map(|mount| path::own(&mount.source)).collect::<Result<Vec<PathBuf>>>()?;
        // Its removal has to let go of the new paths too, even if only some of them got mounted.
        self.note_shared(id, sources);
        container.rebind(&mounts).await
    }

    fn note_shared(&self, id: &str, sources: Vec<PathBuf>) {
        if let Some(Entry::Workload(_, parts)) = self.state().containers.get_mut(id) {
            let shared = parts.shared.iter().cloned().chain(sources).collect();
            let (storages, upper, message) =
                (parts.storages.clone(), parts.upper.clone(), parts.message.clone());
            *parts = Arc::new(Parts { storages, shared, upper, message });
        }
    }
}
