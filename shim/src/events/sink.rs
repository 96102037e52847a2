//! Where events go: containerd's ttrpc socket, or a test's recorder.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::{Error, Kind};

/// As long as containerd's own shim library gives an event.
const FORWARD_LIMIT: Duration = Duration::from_secs(5);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an event did not get through.
#[derive(Debug)]
pub enum Rejection {
    /// The other side is away; it may come back.
    Unreachable(Error),
    /// The other side said no; it would say no again.
    Refused(Error),
}

/// Takes one event at a time.
#[async_trait]
pub trait Sink: Send + Sync + Debug + 'static {
    /// Passes `envelope` on. Has a deadline of its own.
    async fn forward(&self, envelope: &Envelope) -> Result<(), Rejection>;
}

/// containerd's event service at `address`: a socket path, with or without `unix://`, as `TTRPC_ADDRESS` has it.
/// Connects at the first event, and again after each broken connection.
#[must_use]
pub fn containerd(address: &str) -> impl Sink {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    Containerd { address: format!("unix://{path}"), client: Mutex::default() }
}

struct Containerd {
    address: String,
    client: Mutex<Option<EventsClient>>,
}

impl Debug for Containerd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Containerd").field(&self.address).finish()
    }
}

#[async_trait]
impl Sink for Containerd {
    async fn forward(&self, envelope: &Envelope) -> Result<(), Rejection> {
        let request = ForwardRequest { envelope: MessageField::some(envelope.clone()), ..Default::default() };
        let mut client = self.client.lock().await;
        // The outer limit also covers connecting, which has none.
        let sent = timeout(FORWARD_LIMIT, async {
            let connection = match client.as_ref() {
                Some(connection) => connection,
                None => client.insert(EventsClient::new(Client::connect(&self.address).await?)),
            };
            connection.forward(ttrpc::context::with_duration(FORWARD_LIMIT), &request).await
        })
        .await;
        let failed = |kind, source| {
            Error::caused(kind, format!("Could not send an event to {}", self.address), source)
        };
        let rejection = match sent {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) if !may_pass(&error) => {
                return Err(Rejection::Refused(failed(Kind::Internal, Cause::from(error))));
            }
            Ok(Err(error)) => failed(Kind::Unavailable, error.into()),
            Err(elapsed) => failed(Kind::DeadlineExceeded, elapsed.into()),
        };
        // Whatever it was, a new connection starts from a clean state.
        *client = None;
        Err(Rejection::Unreachable(rejection))
    }
}

/// Whether the same event may be welcome later.
fn may_pass(error: &ttrpc::Error) -> bool {
    use ttrpc::Code;
    let ttrpc::Error::RpcStatus(status) = error else { return true };
    let passing = [
        Code::UNAVAILABLE,
        Code::DEADLINE_EXCEEDED,
        Code::CANCELLED,
        Code::ABORTED,
        Code::RESOURCE_EXHAUSTED,
    ];
    passing.iter().any(|code| status.code() == *code)
}
