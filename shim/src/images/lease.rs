//! Leases: what containerd must keep while a restored pod lives. Called by `sandbox`, and by the ledger to undo.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::snapshots::RemoveSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::{
    CreateRequest, DeleteRequest, ListResourcesRequest, leases_client::LeasesClient,
};
use containerd_client::tonic::Code;

use super::{Client, answer, failed, missing};
use crate::error::{Context, Error, Kind, Result};

/// Longest time that a lease may take to go, with everything that it held.
const RELEASE: Duration = Duration::from_secs(20);

impl Client {
    /// Makes the lease `id`; nothing happens if it is there. Claim it in the ledger first.
    ///
    /// # Errors
    /// When containerd refuses or does not answer.
    pub async fn create_lease(&self, id: &str) -> Result<()> {
        let mut client = LeasesClient::new(self.channel());
        let labels = [("io.containerd.microvm.v1/restored-pod".to_owned(), id.to_owned())].into();
        let made = answer(client.create(self.request(CreateRequest { id: id.into(), labels }))).await;
        match made {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            made => made.map(drop).map_err(failed(|| format!("Could not make the lease {id} in containerd"))),
        }
    }

    /// Removes the snapshots of the lease `id` and then itself; what is gone already is a success.
    ///
    /// # Errors
    /// When containerd refuses or does not answer.
    pub async fn delete_lease(&self, id: &str) -> Result<()> {
        let mut client = LeasesClient::new(self.channel());
        let listed =
            answer(client.list_resources(self.request(ListResourcesRequest { id: id.into() }))).await;
        if missing(&listed) {
            return Ok(());
        }
        let listed = listed.map_err(failed(|| format!("Could not list what the lease {id} holds")))?;
        for resource in listed.resources {
            if let Some(snapshotter) = resource.r#type.strip_prefix("snapshots/") {
                self.remove_snapshot(snapshotter, &resource.id).await?;
            }
        }
        let deleted = answer(client.delete(self.request(DeleteRequest { id: id.into(), sync: true }))).await;
        if missing(&deleted) {
            return Ok(());
        }
        deleted.map_err(failed(|| format!("Could not remove the lease {id} from containerd")))
    }

    async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<()> {
        let mut client = SnapshotsClient::new(self.channel());
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
        let removed = answer(client.remove(self.request(request))).await;
        if missing(&removed) {
            return Ok(());
        }
        removed.map_err(failed(|| format!("Could not remove the snapshot {key} from {snapshotter}")))
    }
}

/// Removes a lease and everything it holds, from any thread, blocking up to 20 s.
///
/// # Errors
/// `Unavailable` when containerd does not answer at `address`.
pub fn release_lease(address: &Path, namespace: &str, id: &str) -> Result<()> {
    // A thread of its own: the caller's may belong to a runtime, which must not block on another one.
    let released = std::thread::scope(|scope| scope.spawn(|| release(address, namespace, id)).join());
    released.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "The thread that removes a lease panicked")))
}

fn release(address: &Path, namespace: &str, id: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| format!("Could not start a runtime to remove the lease {id}"))?;
    runtime.block_on(async {
        let work = async { Client::connect(address, namespace).await?.delete_lease(id).await };
        tokio::time::timeout(RELEASE, work).await.unwrap_or_else(|_| {
            let text = format!("Could not remove the lease {id} from containerd within {RELEASE:?}");
            Err(Error::new(Kind::DeadlineExceeded, text))
        })
    })
}
