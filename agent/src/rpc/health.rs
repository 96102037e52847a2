//! `grpc.Health`: whether the agent answers, and which one it is.

use agent_proto::health::health_check_response::ServingStatus;
use agent_proto::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

/// The version of the kata-agent protocol that the messages are of.
const PROTOCOL: &str = "0.0.1";

#[derive(Debug)]
pub(super) struct Service;

#[async_trait]
impl agent_proto::health_ttrpc::Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: PROTOCOL.into(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }
}
