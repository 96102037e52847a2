//! Snapshots that containerd packed into an image (`ctr tasks checkpoint` without `--image-path`). Called by
//! `microvmctl snapshot import`.

use std::fs::File;
use std::io::Write;

use containerd_client::services::v1::{
    GetImageRequest, ReadContentRequest, content_client::ContentClient, images_client::ImagesClient,
};
use serde::Deserialize;

use super::{ANSWER, Client, answer, failed};
use crate::error::{Context, Error, Kind, Result};

/// What containerd calls the archive of a checkpoint among an index's parts, whoever made it.
pub const CHECKPOINT_TYPE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// Longest index that is read, in bytes.
const MAX_INDEX: u64 = 1 << 20;

/// An OCI index or a part of one; only what is needed to find the checkpoint.
#[derive(Debug, Deserialize)]
pub struct Index {
    /// Its parts.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// A part of an index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its name in the content store.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not one.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).kind(Kind::InvalidArgument, || "The image's index is not one".into())
    }

    /// The archive of the checkpoint in it.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Descriptor> {
        self.manifests.iter().find(|part| part.media_type == CHECKPOINT_TYPE)
    }
}

impl Client {
    /// Whether containerd has an image of that name.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn has_image(&self, name: &str) -> Result<bool> {
        let mut client = ImagesClient::new(self.channel());
        let found = answer(client.get(self.request(GetImageRequest { name: name.into() }))).await;
        if super::missing(&found) {
            return Ok(false);
        }
        found.map(|_| true).map_err(failed(|| format!("Could not ask containerd for the image {name}")))
    }

    /// Writes the archive of the checkpoint image `name` into `to`.
    ///
    /// # Errors
    /// `NotFound` when there is no such image, `InvalidArgument` when it holds no checkpoint.
    pub async fn fetch_checkpoint(&self, name: &str, to: &mut File) -> Result<()> {
        let mut client = ImagesClient::new(self.channel());
        let about = || format!("Could not find the image {name} in containerd");
        let image = answer(client.get(self.request(GetImageRequest { name: name.into() }))).await;
        let target = image.map_err(failed(about))?.image.and_then(|image| image.target);
        let none = || {
            let text =
                format!("The image {name} holds no checkpoint; `ctr tasks checkpoint` makes one that does");
            Error::new(Kind::InvalidArgument, text)
        };
        let target = target.ok_or_else(none)?;
        let mut json = Vec::new();
        self.fetch(&target.digest, MAX_INDEX, &mut json).await?;
        let index = Index::parse(&json).context(|| format!("Could not read the image {name}"))?;
        let part = index.checkpoint().ok_or_else(none)?;
        self.fetch(&part.digest, part.size, to).await
    }

    /// Writes one blob of at most `most` bytes into `to`.
    async fn fetch(&self, digest: &str, most: u64, to: &mut (impl Write + Send)) -> Result<()> {
        let about = || format!("Could not read {digest} from containerd");
        let mut client = ContentClient::new(self.channel());
        let request = ReadContentRequest { digest: digest.into(), offset: 0, size: 0 };
        let mut stream = answer(client.read(self.request(request))).await.map_err(failed(about))?;
        let mut length = 0;
        loop {
            let next = tokio::time::timeout(ANSWER, stream.message()).await;
            let next = next.kind(Kind::DeadlineExceeded, || format!("{} within {ANSWER:?}", about()))?;
            let Some(piece) = next.map_err(failed(about))? else { return Ok(()) };
            length += piece.data.len() as u64;
            if length > most {
                let text = format!("{digest} is longer than the {most} bytes that it may have");
                return Err(Error::new(Kind::InvalidArgument, text));
            }
            to.write_all(&piece.data).context(about)?;
        }
    }
}
