//! Which image a container has, and which layers that is. Called by `sandbox`: at a checkpoint to write it down, at
//! a restore to compare.

use containerd_client::services::v1::snapshots::StatSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::{
    Container, GetContainerRequest, GetImageRequest, containers_client::ContainersClient,
    images_client::ImagesClient,
};

use super::{Client, answer, failed, missing};
use crate::error::{Error, Kind, Result};
use crate::snapshot::manifest::{Digest, ImageRecord};

/// Most layers of an image; overlayfs itself takes 500.
const MAX_LAYERS: usize = 512;

impl Client {
    /// The image of containerd's container `id`. The layers come from its snapshot, whose ancestors are named by
    /// the chain ids of the image's layers, so they are those it runs on even if its image's name moved meanwhile.
    ///
    /// # Errors
    /// `NotFound` when there is no such container; `FailedPrecondition` when it has no image, or its root
    /// filesystem is not an image's, or its image's name is gone.
    pub async fn image_of_container(&self, id: &str) -> Result<ImageRecord> {
        let container = self.container(id).await?;
        let without = |what: &str| {
            let text = format!("Container {id} {what}, so a snapshot can't say where its files come from");
            Error::new(Kind::FailedPrecondition, text)
        };
        if container.image.is_empty() || container.snapshot_key.is_empty() {
            return Err(without("has no image"));
        }
        let layers = self.layers(&container.snapshotter, &container.snapshot_key).await?;
        if layers.is_empty() {
            return Err(without("has a root filesystem without layers"));
        }
        let digest = self.image_digest(&container.image).await?;
        Ok(ImageRecord { name: container.image, digest, snapshotter: container.snapshotter, layers })
    }

    async fn container(&self, id: &str) -> Result<Container> {
        let mut client = ContainersClient::new(self.channel());
        let request = self.request(GetContainerRequest { id: id.into() });
        let what = || format!("Could not ask containerd for the container {id}");
        answer(client.get(request)).await.map_err(failed(what))?.container.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("containerd answered without the container {id}"))
        })
    }

    async fn image_digest(&self, name: &str) -> Result<Digest> {
        let mut client = ImagesClient::new(self.channel());
        let found = answer(client.get(self.request(GetImageRequest { name: name.into() }))).await;
        if missing(&found) {
            let text = format!(
                "The image {name} is gone from containerd while a container uses it; pull it again before a \
                 checkpoint"
            );
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        let found = found.map_err(failed(|| format!("Could not ask containerd for the image {name}")))?;
        let target = found.image.and_then(|image| image.target).map(|target| target.digest);
        target.and_then(|digest| digest.parse().ok()).ok_or_else(|| {
            Error::new(Kind::Internal, format!("containerd answered without a digest of the image {name}"))
        })
    }

    /// The chain ids of all layers below the snapshot `key`, lowest first.
    async fn layers(&self, snapshotter: &str, key: &str) -> Result<Vec<Digest>> {
        let mut layers = Vec::new();
        let mut name = key.to_owned();
        loop {
            let parent = self.parent(snapshotter, &name).await?;
            if parent.is_empty() {
                layers.reverse();
                return Ok(layers);
            }
            let digest = parent.parse().map_err(|()| {
                let text = format!("The snapshot {key} in {snapshotter} is built on {parent:?}, which is no layer of an image");
                Error::new(Kind::FailedPrecondition, text)
            })?;
            if layers.len() == MAX_LAYERS {
                let text = format!("The snapshot {key} in {snapshotter} has more than {MAX_LAYERS} layers");
                return Err(Error::new(Kind::FailedPrecondition, text));
            }
            layers.push(digest);
            name = parent;
        }
    }

    async fn parent(&self, snapshotter: &str, key: &str) -> Result<String> {
        let mut client = SnapshotsClient::new(self.channel());
        let request = StatSnapshotRequest { snapshotter: snapshotter.into(), key: key.into() };
        let found = answer(client.stat(self.request(request))).await;
        let what = || format!("Could not ask containerd for the snapshot {key} in {snapshotter}");
        Ok(found.map_err(failed(what))?.info.unwrap_or_default().parent)
    }
}
