//! Serves the scripted guest's agent on a socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_proto::{agent_ttrpc, health_ttrpc, microvm_ttrpc};

use super::agent::Guest;
use crate::error::{Context, Result as ShimResult};

/// A running scripted agent.
pub(super) struct Server(ttrpc::r#async::Server);

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

/// Where the agent of the machine in `dir` listens.
pub(super) fn socket(dir: &Path) -> PathBuf {
    dir.join("scripted-agent.sock")
}

impl Server {
    pub(super) async fn start(dir: &Path, guest: Arc<Guest>) -> ShimResult<Self> {
        let failed = || "Could not serve the scripted agent".to_owned();
        let server = ttrpc::r#async::Server::new().bind(&format!("unix://{}", socket(dir).display()));
        let mut server = server
            .context(failed)?
            .register_service(agent_ttrpc::create_agent_service(guest.clone()))
            .register_service(health_ttrpc::create_health(guest.clone()))
            .register_service(microvm_ttrpc::create_guest(guest));
        server.start().await.context(failed)?;
        Ok(Server(server))
    }

    /// Serves no more. The connection ends on its own: the server would wait ten seconds for the client to leave first.
    pub(super) fn stop(mut self) {
        tokio::spawn(async move {
            self.0.stop_listen().await;
            self.0.disconnect().await;
        });
    }
}
