//! The agent's three ttrpc services, translated to calls of the parts; and the connections they are served on.
//! `main.rs` serves the listener that `transport` made.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use agent_proto::{agent_ttrpc, health_ttrpc, microvm_ttrpc};
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, oneshot};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::{Listener, Socket};

use crate::network::Network;
use crate::sandbox::Sandbox;
use crate::streams::Streams;

mod agent;
mod container;
mod guest;
mod health;
mod pod;
mod status;

/// The parts of the agent that the services call.
#[derive(Debug)]
pub struct Parts {
    /// The pod.
    pub sandbox: Arc<Sandbox>,
    /// The guest's network.
    pub network: Network,
    /// Notified once the guest shall end.
    pub end: Notify,
}

/// Serves connections, each in tasks of its own, until the listener ends. A connection's port-forward streams end
/// with it; all else outlives it.
pub async fn serve(mut listener: Listener, parts: Arc<Parts>) {
    while let Some(accepted) = listener.next().await {
        match accepted {
            Ok(socket) => drop(tokio::spawn(connection(socket, parts.clone()))),
            Err(error) => log::warn!("Could not accept a connection: {error}"),
        }
    }
}

async fn connection(socket: Socket, parts: Arc<Parts>) {
    log::debug!("A host connects");
    let streams = Arc::new(Streams::default());
    let (open, closed) = oneshot::channel::<()>();
    let socket = Tracked { socket, _open: open };
    let once = futures::stream::once(async move { Ok(socket) });
    let mut server = Server::new()
        .add_listener(Listener::new(once))
        .register_service(agent_ttrpc::create_agent_service(Arc::new(agent::Service(parts.clone()))))
        .register_service(health_ttrpc::create_health(Arc::new(health::Service)))
        .register_service(microvm_ttrpc::create_guest(Arc::new(guest::Service { parts, streams })));
    if let Err(error) = server.start().await {
        log::error!("Could not serve a connection: {error}");
        return;
    }
    // Nothing is ever sent: this ends when ttrpc drops its socket.
    _ = closed.await;
    log::debug!("A host has left");
    server.disconnect().await;
}

/// A socket whose drop can be waited for, which ttrpc offers no way to.
struct Tracked {
    socket: Socket,
    _open: oneshot::Sender<()>,
}

impl AsyncRead for Tracked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
