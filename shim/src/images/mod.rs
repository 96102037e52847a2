//! Images, their layers, and tasks, asked of containerd over its gRPC socket. Called by `sandbox` (which image a
//! container has; the layers of a snapshot's containers before a restore), by the ledger's undo and by `microvmctl`. Knows
//! containerd only: it mounts nothing and reads no snapshot files.

pub mod checkpoint;
mod lease;
mod resolve;
mod tasks;
mod view;

use std::path::Path;
use std::time::Duration;

use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{self, Code, Request, Status};

pub use lease::release_lease;

use crate::error::{Error, Kind, Result};

/// Longest wait for containerd to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for one answer. A view of a snapshot takes milliseconds; removing one on a slow disk a second.
const ANSWER: Duration = Duration::from_secs(15);

/// A connection to containerd, in one of its namespaces.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl Client {
    /// Connects to containerd's gRPC socket `address`. Waits up to 5 s.
    ///
    /// # Errors
    /// `Unavailable` when nobody answers there; `InvalidArgument` when `namespace` can't be one.
    pub async fn connect(address: &Path, namespace: &str) -> Result<Self> {
        let value = MetadataValue::try_from(namespace).map_err(|error| {
            Error::caused(
                Kind::InvalidArgument,
                format!("{namespace:?} can't be a containerd namespace"),
                error,
            )
        })?;
        let what = || format!("Could not connect to containerd at {}", address.display());
        match tokio::time::timeout(CONNECT, containerd_client::connect(address)).await {
            Ok(Ok(channel)) => Ok(Self { channel, namespace: value }),
            Ok(Err(error)) => Err(Error::caused(Kind::Unavailable, what(), root_cause(&error))),
            Err(_) => Err(Error::new(Kind::Unavailable, format!("{} within {CONNECT:?}", what()))),
        }
    }

    /// containerd's version, as `2.1.9`.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer.
    pub async fn version(&self) -> Result<String> {
        let mut client = containerd_client::services::v1::version_client::VersionClient::new(self.channel());
        let answer = answer(client.version(self.request(()))).await;
        Ok(answer.map_err(failed(|| "Could not ask containerd for its version".into()))?.version)
    }

    fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request for something that lives as long as the lease.
    fn leased<T>(&self, message: T, lease: &str) -> Result<Request<T>> {
        let value = MetadataValue::try_from(lease).map_err(|error| {
            Error::caused(Kind::InvalidArgument, format!("{lease:?} can't be the id of a lease"), error)
        })?;
        let mut request = self.request(message);
        request.metadata_mut().insert("containerd-lease", value);
        Ok(request)
    }
}

/// What really happened: the layers above it only say "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

/// Waits for an answer, up to [`ANSWER`].
async fn answer<T>(
    call: impl Future<Output = std::result::Result<tonic::Response<T>, Status>>,
) -> std::result::Result<T, Status> {
    match tokio::time::timeout(ANSWER, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("containerd did not answer within {ANSWER:?}"))),
    }
}

/// Makes our error of containerd's.
fn failed(what: impl FnOnce() -> String) -> impl FnOnce(Status) -> Error {
    |status| {
        let kind = match status.code() {
            Code::NotFound => Kind::NotFound,
            Code::AlreadyExists => Kind::AlreadyExists,
            Code::FailedPrecondition => Kind::FailedPrecondition,
            Code::InvalidArgument => Kind::InvalidArgument,
            Code::ResourceExhausted => Kind::ResourceExhausted,
            Code::DeadlineExceeded => Kind::DeadlineExceeded,
            Code::Unavailable | Code::Cancelled => Kind::Unavailable,
            _ => Kind::Internal,
        };
        // The status' own text has its code, metadata and source as well: its message is what says something.
        Error::caused(kind, what(), status.message().to_owned())
    }
}

/// Whether the answer is that there is no such thing.
fn missing<T>(answer: &std::result::Result<T, Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::NotFound)
}
