//! `microvm.Guest`: what this project adds to kata's protocol.

use std::sync::Arc;

use agent_proto::microvm::{
    CloseRequest, DialRequest, DialResponse, FrozenContainers, ReadRequest, ReadResponse, RebindRequest,
    RenewRequest, WriteRequest,
};
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use ttrpc::r#async::TtrpcContext;

use super::Parts;
use super::status::{detached, status};
use crate::error::{Error, Result};
use crate::machine;
use crate::sandbox::dns;
use crate::storage::blocking;
use crate::streams::Streams;

pub(super) struct Service {
    pub(super) parts: Arc<Parts>,
    /// Of this connection.
    pub(super) streams: Arc<Streams>,
}

/// In this order: random numbers first, as all that follows may draw some; the network last, so that nothing is heard
/// of the guest before it is itself.
async fn renew(parts: Arc<Parts>, request: RenewRequest) -> Result<()> {
    let step = |what: &'static str| {
        move |error: Error| Error::caused(error.kind(), format!("Renewing the {what}"), error)
    };
    let RenewRequest { entropy, seconds, nanoseconds, hostname, dns, interfaces, routes, neighbors, .. } =
        request;
    blocking(move || machine::reseed(&entropy)).await.map_err(step("random numbers"))?;
    blocking(move || machine::set_time(seconds, nanoseconds)).await.map_err(step("clock"))?;
    parts.sandbox.set_hostname(hostname).await.map_err(step("hostname"))?;
    dns::write(dns).await.map_err(step("DNS settings"))?;
    parts.network.renew(&interfaces, &routes, &neighbors).await.map_err(step("network"))
}

#[async_trait]
impl agent_proto::microvm_ttrpc::Guest for Service {
    async fn renew(&self, _: &TtrpcContext, request: RenewRequest) -> ttrpc::Result<Empty> {
        detached("Renew", renew(self.parts.clone(), request)).await.map(|()| Empty::new())
    }

    async fn freeze_all(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<FrozenContainers> {
        let sandbox = self.parts.sandbox.clone();
        let ids = detached("FreezeAll", async move { sandbox.freeze_all().await }).await?;
        Ok(FrozenContainers { ids, ..Default::default() })
    }

    async fn thaw_all(&self, _: &TtrpcContext, request: FrozenContainers) -> ttrpc::Result<Empty> {
        let sandbox = self.parts.sandbox.clone();
        detached("ThawAll", async move { sandbox.thaw_all(&request.ids).await }).await.map(|()| Empty::new())
    }

    async fn rebind(&self, _: &TtrpcContext, request: RebindRequest) -> ttrpc::Result<Empty> {
        let sandbox = self.parts.sandbox.clone();
        let RebindRequest { container_id, mounts, .. } = request;
        let work = async move { sandbox.rebind(&container_id, mounts).await };
        detached("Rebind", work).await.map(|()| Empty::new())
    }

    async fn dial(&self, _: &TtrpcContext, request: DialRequest) -> ttrpc::Result<DialResponse> {
        let stream = self.streams.dial(request.port, request.ipv6).await.map_err(|error| status(&error))?;
        Ok(DialResponse { stream, ..Default::default() })
    }

    async fn read_stream(&self, _: &TtrpcContext, request: ReadRequest) -> ttrpc::Result<ReadResponse> {
        let data = self.streams.read(request.stream, request.len).await.map_err(|error| status(&error))?;
        Ok(ReadResponse { data, ..Default::default() })
    }

    async fn write_stream(&self, _: &TtrpcContext, request: WriteRequest) -> ttrpc::Result<Empty> {
        let written = self.streams.write(request.stream, &request.data).await;
        written.map(|()| Empty::new()).map_err(|error| status(&error))
    }

    async fn close_stream(&self, _: &TtrpcContext, request: CloseRequest) -> ttrpc::Result<Empty> {
        let closed = self.streams.close(request.stream, request.write_only).await;
        closed.map(|()| Empty::new()).map_err(|error| status(&error))
    }
}
