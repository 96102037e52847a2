//! An agent of the test, honest or hostile as told, on a real ttrpc connection. Called by the client's tests.

use std::sync::Arc;
use std::time::Duration;

use agent_proto::{agent, agent_ttrpc, health, health_ttrpc, microvm, microvm_ttrpc};
use async_trait::async_trait;
use protobuf::well_known_types::empty::Empty;
use tokio::net::UnixStream;
use ttrpc::r#async::TtrpcContext;

use super::Agent;

/// Deadline of the client's calls in tests.
pub(super) const TIMEOUT: Duration = Duration::from_millis(500);

/// What the agent of the test does.
#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    /// What it announces.
    pub(super) features: Vec<String>,
    /// What a read of stdout answers, whatever was asked for.
    pub(super) stdout: Vec<u8>,
    /// Exit status of every process.
    pub(super) status: i32,
}

/// A running agent; its sockets go with the directory.
pub(super) struct FakeAgent {
    server: ttrpc::r#async::Server,
    dir: tempfile::TempDir,
}

impl FakeAgent {
    pub(super) async fn start(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Arc::new(script);
        let mut server = ttrpc::r#async::Server::new()
            .bind(&format!("unix://{}", dir.path().join("agent").display()))
            .unwrap()
            .register_service(agent_ttrpc::create_agent_service(service.clone()))
            .register_service(health_ttrpc::create_health(service.clone()))
            .register_service(microvm_ttrpc::create_guest(service));
        server.start().await.unwrap();
        Self { server, dir }
    }

    pub(super) async fn connect(&self) -> Agent {
        let stream = UnixStream::connect(self.dir.path().join("agent")).await.unwrap();
        Agent::connect(stream, TIMEOUT).await.unwrap()
    }

    pub(super) async fn stop(mut self) {
        self.server.shutdown().await.unwrap();
    }
}

#[async_trait]
impl health_ttrpc::Health for Script {
    async fn check(
        &self,
        _: &TtrpcContext,
        _: health::CheckRequest,
    ) -> ttrpc::Result<health::HealthCheckResponse> {
        let status = health::health_check_response::ServingStatus::SERVING.into();
        Ok(health::HealthCheckResponse { status, ..Default::default() })
    }
}

#[async_trait]
impl agent_ttrpc::AgentService for Script {
    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: agent::GuestDetailsRequest,
    ) -> ttrpc::Result<agent::GuestDetailsResponse> {
        let details = agent::AgentDetails {
            version: "1\n2".into(),
            extra_features: self.features.clone(),
            ..Default::default()
        };
        Ok(agent::GuestDetailsResponse { agent_details: Some(details).into(), ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: agent::StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let text = format!("exec: no such file\n{}", "\u{1b}x".repeat(100_000));
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::NOT_FOUND, text)))
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        _: agent::PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        std::future::pending().await
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: agent::WaitProcessRequest,
    ) -> ttrpc::Result<agent::WaitProcessResponse> {
        if request.exec_id == "endless" {
            std::future::pending::<()>().await;
        }
        Ok(agent::WaitProcessResponse { status: self.status, ..Default::default() })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        _: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        Ok(agent::ReadStreamResponse { data: self.stdout.clone(), ..Default::default() })
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: agent::WriteStreamRequest,
    ) -> ttrpc::Result<agent::WriteStreamResponse> {
        let len = u32::try_from(request.data.len()).unwrap() + u32::from(request.exec_id == "liar");
        Ok(agent::WriteStreamResponse { len, ..Default::default() })
    }
}

#[async_trait]
impl microvm_ttrpc::Guest for Script {
    async fn freeze_all(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<microvm::FrozenContainers> {
        Ok(microvm::FrozenContainers { ids: vec!["web_ovl".into()], ..Default::default() })
    }
}
