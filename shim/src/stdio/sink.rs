//! Where output goes: the path of a fifo, `file://` or `binary://`. Called by `Stdio::open`.

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;
use std::pin::Pin;

use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;

use super::logger;
use super::{Label, Output};
use crate::error::{Context, Error, Kind, Result};
use crate::task::Streams;

/// The open end of an output.
pub(super) type Sink = Pin<Box<dyn Writer>>;

/// What a sink can do.
pub(super) trait Writer: AsyncWrite + Send + Sync + fmt::Debug {}
impl<T: AsyncWrite + Send + Sync + fmt::Debug> Writer for T {}

/// Opens the outputs that `streams` names.
pub(super) async fn open(streams: &Streams, label: Label<'_>) -> Result<Vec<(Output, Sink)>> {
    if let Some(uri) = streams.stdout.strip_prefix("binary://") {
        // One program for both streams, named in each of them.
        return logger::start(uri, streams, label).await;
    }
    let mut sinks = Vec::new();
    for (output, uri) in [(Output::Stdout, &streams.stdout), (Output::Stderr, &streams.stderr)] {
        // A terminal has one output only.
        let wanted = output == Output::Stdout || !streams.terminal;
        if wanted && !uri.is_empty() {
            sinks.push((output, open_one(uri).await?));
        }
    }
    Ok(sinks)
}

async fn open_one(uri: &str) -> Result<Sink> {
    match uri.split_once("://") {
        None => open_path(Path::new(uri)).await,
        Some(("fifo", path)) => open_path(Path::new(path)).await,
        Some(("file", path)) => {
            let path = Path::new(path);
            if let Some(parent) = path.parent() {
                let made = DirBuilder::new().recursive(true).mode(0o755).create(parent);
                made.context(|| format!("Could not make {} for a log", parent.display()))?;
            }
            append(path, true).await
        }
        Some((scheme, _)) => {
            let text = format!(
                "Output to {scheme:?} is not supported ({uri}): use a fifo, file:// or binary:// instead"
            );
            Err(Error::new(Kind::InvalidArgument, text))
        }
    }
}

async fn open_path(path: &Path) -> Result<Sink> {
    let failed = || format!("Could not open output {}", path.display());
    let kind = tokio::fs::metadata(path).await.context(failed)?.file_type();
    if !kind.is_fifo() {
        return append(path, false).await;
    }
    // Both ends, so that nothing breaks while containerd restarts: then output waits in the fifo, 64 KiB of it.
    let sender = pipe::OpenOptions::new().read_write(true).open_sender(path).context(failed)?;
    Ok(Box::pin(sender))
}

async fn append(path: &Path, create: bool) -> Result<Sink> {
    let opened = tokio::fs::OpenOptions::new().append(true).create(create).mode(0o644).open(path).await;
    Ok(Box::pin(opened.context(|| format!("Could not open output {}", path.display()))?))
}
