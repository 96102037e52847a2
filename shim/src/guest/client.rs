//! The agent's client: one connection, its deadline, and what happens when it ends. The calls themselves are in
//! the files named after their topics. Called by `sandbox`, `container` and `stdio`.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::agent_ttrpc::AgentServiceClient;
use agent_proto::health_ttrpc::HealthClient;
use agent_proto::microvm_ttrpc::GuestClient;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, watch};
use tokio::time;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

use super::failure;
use crate::error::{Error, Kind, Result};

/// How much later than the client ttrpc and the agent give up.
const GRACE: Duration = Duration::from_secs(1);

/// One connection to a guest's agent. Clones share it, and calls may run side by side.
///
/// Every call fails with `Unavailable` as soon as the connection ends, with `DeadlineExceeded` at the deadline
/// given to [`Agent::connect`], and else with the kind that the agent named. What the guest says is hostile:
/// texts are cut and escaped, and an answer that is larger than what was asked for is an `Internal` error.
#[derive(Clone)]
pub struct Agent {
    pub(super) rpc: AgentServiceClient,
    pub(super) health: HealthClient,
    pub(super) guest: GuestClient,
    /// Whether the agent has our own service; asked once.
    pub(super) extended: Arc<OnceCell<bool>>,
    closed: watch::Receiver<bool>,
    timeout: Duration,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("closed", &*self.closed.borrow()).finish_non_exhaustive()
    }
}

impl Agent {
    /// Speaks ttrpc over `stream`, whose handshake is done, and asks the agent whether it serves. `timeout` is the
    /// deadline of each later call.
    ///
    /// # Errors
    /// As every call.
    pub async fn connect(stream: UnixStream, timeout: Duration) -> Result<Self> {
        let (stream, closed) = super::watched::Watched::new(stream);
        let client = ttrpc::r#async::Client::new(Socket::new(stream));
        let agent = Self {
            rpc: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client.clone()),
            guest: GuestClient::new(client),
            extended: Arc::default(),
            closed,
            timeout,
        };
        agent.check().await?;
        Ok(agent)
    }

    /// Returns when the connection has ended, for whatever reason.
    pub async fn closed(&self) {
        // An error means that the sender is dropped, and with it the stream.
        let _ = self.closed.clone().wait_for(|closed| *closed).await;
    }

    /// For a call with a deadline, so that the agent gives up too; a bit later than [`Agent::ask`], whose error
    /// says what was asked.
    pub(super) fn context(&self) -> Context {
        context::with_duration(self.timeout + GRACE)
    }

    /// Awaits a call that must answer within the deadline. `what` ends the sentence "could not …".
    pub(super) async fn ask<T>(&self, what: &str, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T> {
        time::timeout(self.timeout, self.wait(what, call)).await.unwrap_or_else(|_| {
            let text = format!("The guest agent did not {what} within {:?}", self.timeout);
            Err(Error::new(Kind::DeadlineExceeded, text))
        })
    }

    /// Awaits a call that may take for ever, as long as the connection lives.
    pub(super) async fn wait<T>(
        &self,
        what: &str,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            // An answer that arrived just before the end of the stream is still one.
            biased;
            answer = call => answer.map_err(|error| failure::of(what, error)),
            () = self.closed() => Err(failure::gone(what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::testing::{FakeAgent, Script, TIMEOUT};
    use super::*;

    #[tokio::test]
    async fn calls_have_a_deadline_and_waits_have_none() {
        let fake = FakeAgent::start(Script { status: 300, ..Script::default() }).await;
        let agent = fake.connect().await;
        let started = Instant::now();
        assert_eq!(agent.pause_container("a").await.unwrap_err().kind(), Kind::DeadlineExceeded);
        assert!(started.elapsed() >= TIMEOUT);
        let endless = time::timeout(2 * TIMEOUT, agent.wait_process("a", "endless")).await;
        assert!(endless.is_err(), "the wait ended by itself: {endless:?}");
        // A status that no process can have, and the connection still works.
        assert_eq!(agent.wait_process("a", "").await.unwrap(), 255);
        fake.stop().await;
    }

    #[tokio::test]
    async fn end_of_the_connection_ends_every_call_and_is_told() {
        let fake = FakeAgent::start(Script::default()).await;
        let agent = fake.connect().await;
        assert!(time::timeout(TIMEOUT / 10, agent.closed()).await.is_err());
        let waiter = tokio::spawn({
            let agent = agent.clone();
            async move { agent.wait_process("a", "endless").await }
        });
        // The waiter's request is on its way when a later one of the same connection has its answer.
        agent.check().await.unwrap();
        fake.stop().await;
        time::timeout(TIMEOUT, agent.closed()).await.unwrap();
        let error = time::timeout(TIMEOUT, waiter).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        let late = time::timeout(TIMEOUT, agent.wait_process("a", "endless")).await.unwrap();
        assert_eq!(late.unwrap_err().kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn hostile_answers_are_bounded() {
        let fake = FakeAgent::start(Script { stdout: vec![b'x'; 11], ..Script::default() }).await;
        let agent = fake.connect().await;
        let error = agent.start_container("a").await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.chain().starts_with(
            r#"The guest agent could not start container "a": the guest says: exec: no such file\n"#
        ));
        assert!(error.chain().len() < 4300, "{} bytes", error.chain().len());
        assert_eq!(agent.read_stdout("a", "", 11).await.unwrap().len(), 11);
        let error = agent.read_stdout("a", "", 10).await.unwrap_err();
        assert!(error.chain().ends_with("11 bytes instead of at most 10"), "{}", error.chain());
        assert_eq!(agent.write_stdin("a", "", vec![1, 2]).await.unwrap(), 2);
        // What could be mistaken for the start of a connection is cut in its middle.
        assert_eq!(agent.write_stdin("a", "", b"x\0MVMHELO".to_vec()).await.unwrap(), 5);
        assert_eq!(agent.write_stdin("a", "liar", vec![1, 2]).await.unwrap_err().kind(), Kind::Internal);
        assert_eq!(agent.details().await.unwrap().version, r"1\n2");
        fake.stop().await;
    }

    #[tokio::test]
    async fn our_own_service_is_asked_only_if_announced() {
        let stock = FakeAgent::start(Script::default()).await;
        let error = stock.connect().await.freeze_all().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented);
        stock.stop().await;
        let ours =
            FakeAgent::start(Script { features: vec!["microvm.v1".into()], ..Script::default() }).await;
        assert_eq!(ours.connect().await.freeze_all().await.unwrap(), ["web_ovl"]);
        ours.stop().await;
    }
}
