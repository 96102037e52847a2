//! Read-only views of an image's layers, for a restore: CRI says nothing about a container before its start, and
//! the VM must find all its files at once. Called by `sandbox`.

use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{MountsRequest, StatSnapshotRequest, ViewSnapshotRequest};
use containerd_client::tonic::Code;
use containerd_client::types;

use super::{Client, answer, failed, missing};
use crate::error::{Error, Kind, Result};
use crate::snapshot::manifest::ImageRecord;
use crate::task::Mount;

impl Client {
    /// A view of all layers of `image` under the name `key`, kept by `lease`. Asked again, it is the same view.
    ///
    /// # Errors
    /// `NotFound`, naming image and digest, when the layers are not on this node.
    pub async fn view(&self, image: &ImageRecord, lease: &str, key: &str) -> Result<Vec<Mount>> {
        let Some(top) = image.layers.last() else {
            return Err(Error::new(Kind::InvalidArgument, format!("The image {} has no layers", image.name)));
        };
        let snapshotter = image.snapshotter.as_str();
        let mut client = SnapshotsClient::new(self.channel());
        let stat = StatSnapshotRequest { snapshotter: snapshotter.into(), key: top.to_string() };
        let found = answer(client.stat(self.request(stat))).await;
        if missing(&found) {
            return Err(absent(image));
        }
        let about =
            || format!("Could not look for the image {} ({}) in containerd", image.name, image.digest);
        found.map_err(failed(about))?;

        let about = || format!("Could not make a view of the image {} ({})", image.name, image.digest);
        let request = ViewSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: key.into(),
            parent: top.to_string(),
            labels: [].into(),
        };
        let viewed = match answer(client.view(self.leased(request, lease)?)).await {
            Ok(viewed) => viewed.mounts,
            Err(status) if status.code() == Code::AlreadyExists => {
                let request = MountsRequest { snapshotter: snapshotter.into(), key: key.into() };
                answer(client.mounts(self.request(request))).await.map_err(failed(about))?.mounts
            }
            // It went between the two questions.
            Err(status) if status.code() == Code::NotFound => return Err(absent(image)),
            Err(status) => return Err(failed(about)(status)),
        };
        Ok(viewed.into_iter().map(mount).collect())
    }
}

fn absent(image: &ImageRecord) -> Error {
    let text = format!(
        "The image {} ({}) of the snapshot is not unpacked in {} on this node; pull it and try again",
        image.name, image.digest, image.snapshotter
    );
    Error::new(Kind::NotFound, text)
}

fn mount(mount: types::Mount) -> Mount {
    let types::Mount { r#type: kind, source, target, options } = mount;
    Mount { kind, source, target, options }
}
