//! New volumes for a container that came with a snapshot.

use agent_proto::oci;

use super::plan::Mount;
use super::{Container, helper};
use crate::error::{Context as _, Error, Kind, Result};

impl Container {
    /// Mounts each of `mounts` on top of what is at its destination in the container. Files that its processes have
    /// open stay those of the old mounts.
    ///
    /// # Errors
    /// `InvalidArgument` for anything but a bind mount, else the first mount that failed; those before it stay.
    pub async fn rebind(&self, mounts: &[oci::Mount]) -> Result<()> {
        let mounts = mounts.iter().map(Mount::new).collect::<Result<Vec<_>>>()?;
        let pidfd = self.init.child.pidfd()?;
        let (done, answer) = tokio::sync::oneshot::channel();
        let work = move || {
            // Nobody listens only when the runtime ends.
            let _ = done.send(helper::rebind(&pidfd, &mounts));
        };
        std::thread::Builder::new()
            .name("rebind".to_owned())
            .spawn(work)
            .context(|| "Could not start a thread")?;
        let failed = format!("Could not give container {} its new volumes", self.id);
        match answer.await {
            Ok(done) => done.map_err(|error| Error::caused(error.kind(), failed, error)),
            Err(_) => Err(Error::new(Kind::Internal, failed)),
        }
    }
}
