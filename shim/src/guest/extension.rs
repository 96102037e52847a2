//! Calls of our own service, which a stock kata agent lacks: renewal after a restore, freezing everything, and
//! TCP streams for port-forward. Called by `sandbox` and `network`'s port-forward.

use agent_proto::microvm::{
    CloseRequest, DialRequest, FrozenContainers, ReadRequest, RebindRequest, RenewRequest, WriteRequest,
};
use agent_proto::oci::Mount;
use agent_proto::serial::unambiguous_len;
use protobuf::well_known_types::empty::Empty;
use ttrpc::context::Context;

use super::{Agent, failure, process};
use crate::error::{Error, Kind, Result};

/// What an agent with this service announces.
const FEATURE: &str = "microvm.v1";
/// Most containers that an agent may claim to have frozen: far above what a pod has.
const MOST_FROZEN: usize = 1024;

impl Agent {
    /// Whether the agent has this service. Asked once.
    ///
    /// # Errors
    /// As every call.
    pub async fn is_extended(&self) -> Result<bool> {
        let ask = async || Ok(self.details().await?.features.iter().any(|feature| feature == FEATURE));
        self.extended.get_or_try_init(ask).await.copied()
    }

    /// Says that the agent has this service, so that it need not be asked: it was asked before it was saved.
    pub fn expect_extension(&self) {
        // An answer that is there already is the same.
        let _ = self.extended.set(true);
    }

    async fn need_extension(&self, what: &str) -> Result<()> {
        if self.is_extended().await? {
            return Ok(());
        }
        let text = format!(
            "The guest's agent does not announce {FEATURE:?}, which it needs to {what}; use the guest that comes with this shim"
        );
        Err(Error::new(Kind::Unimplemented, text))
    }

    /// Makes a restored or cloned guest a machine of its own: entropy, clock, names, network.
    ///
    /// # Errors
    /// `Unimplemented` for an agent without this service; else as every call.
    pub async fn renew(&self, request: &RenewRequest) -> Result<()> {
        const WHAT: &str = "renew the guest after a restore";
        self.need_extension(WHAT).await?;
        self.ask(WHAT, self.guest.renew(self.context(), request)).await.map(drop)
    }

    /// Freezes every running container and answers the ids that this call froze; none is frozen if it fails.
    ///
    /// # Errors
    /// `Unimplemented` for an agent without this service; else as every call.
    pub async fn freeze_all(&self) -> Result<Vec<String>> {
        const WHAT: &str = "freeze all containers";
        self.need_extension(WHAT).await?;
        let frozen = self.ask(WHAT, self.guest.freeze_all(self.context(), &Empty::new())).await?;
        if frozen.ids.len() > MOST_FROZEN {
            return Err(failure::nonsense(WHAT, &format!("{} containers", frozen.ids.len())));
        }
        Ok(frozen.ids)
    }

    /// Thaws the containers that [`Agent::freeze_all`] answered.
    ///
    /// # Errors
    /// `Unimplemented` for an agent without this service; else as every call.
    pub async fn thaw_all(&self, ids: &[String]) -> Result<()> {
        const WHAT: &str = "thaw containers";
        self.need_extension(WHAT).await?;
        let request = FrozenContainers { ids: ids.to_vec(), ..Default::default() };
        self.ask(WHAT, self.guest.thaw_all(self.context(), &request)).await.map(drop)
    }

    /// Puts `mounts` of the new pod on top of what a container of a snapshot has at their destinations.
    ///
    /// # Errors
    /// `Unimplemented` for an agent without this service; else as every call.
    pub async fn rebind(&self, container: &str, mounts: Vec<Mount>) -> Result<()> {
        const WHAT: &str = "give a restored container its volumes";
        self.need_extension(WHAT).await?;
        let request = RebindRequest { container_id: container.into(), mounts, ..Default::default() };
        self.ask(WHAT, self.guest.rebind(self.context(), &request)).await.map(drop)
    }

    /// Connects to a TCP port on the guest's loopback and answers a stream for the calls below.
    ///
    /// # Errors
    /// `Unimplemented` for an agent without this service; else as every call.
    pub async fn dial(&self, port: u16, ipv6: bool) -> Result<u64> {
        let what = format!("connect to its port {port}");
        self.need_extension(&what).await?;
        let request = DialRequest { port: port.into(), ipv6, ..Default::default() };
        self.ask(&what, self.guest.dial(self.context(), &request)).await.map(|answer| answer.stream)
    }

    /// Waits without deadline for 1 to `most` bytes; none at the end of the stream.
    ///
    /// # Errors
    /// As every call without a deadline.
    pub async fn read_stream(&self, stream: u64, most: u32) -> Result<Vec<u8>> {
        let what = format!("read from stream {stream}");
        let request = ReadRequest { stream, len: most, ..Default::default() };
        let answer = self.wait(&what, self.guest.read_stream(Context::default(), &request)).await?;
        process::within(&what, answer.data, most)
    }

    /// Writes all of `data`; waits without deadline for a peer that does not read.
    ///
    /// # Errors
    /// As every call without a deadline.
    pub async fn write_stream(&self, stream: u64, data: &[u8]) -> Result<()> {
        let what = format!("write to stream {stream}");
        let mut rest = data;
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(unambiguous_len(rest));
            let request = WriteRequest { stream, data: piece.to_vec(), ..Default::default() };
            self.wait(&what, self.guest.write_stream(Context::default(), &request)).await?;
            rest = others;
        }
        Ok(())
    }

    /// Ends the write side of a stream, or drops the stream.
    ///
    /// # Errors
    /// As every call.
    pub async fn close_stream(&self, stream: u64, write_only: bool) -> Result<()> {
        let what = format!("close stream {stream}");
        let request = CloseRequest { stream, write_only, ..Default::default() };
        self.ask(&what, self.guest.close_stream(self.context(), &request)).await.map(drop)
    }
}
