//! One connection of a port-forward: both directions, each ending by itself.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::error::{Context, Kind, Result};
use crate::guest::Agent;

/// Most bytes of one call to the agent.
const CHUNK: u32 = 32 * 1024;

/// Connects to the port of the guest's loopback that `socket`'s peer asked for, and copies until both directions have
/// ended. A connection that can't be made in the guest, or breaks, is reset here.
pub(super) async fn carry(agent: &Agent, mut socket: TcpStream) -> Result<()> {
    let wanted = socket.local_addr().context(|| "Could not tell which port was asked for".into())?;
    let carried = match dial(agent, wanted.port(), wanted.is_ipv6()).await {
        Ok(stream) => {
            let copied = copy(agent, stream, &mut socket).await;
            copied.and(agent.close_stream(stream, false).await)
        }
        Err(error) => Err(error),
    };
    if carried.is_err() {
        // The peer shall see a failure, not an end. On a socket that is closed already it has.
        let _ = socket.set_zero_linger();
    }
    carried
}

/// A client that finds nobody at 127.0.0.1 tries ::1 next, but here it has found us: try in its place.
async fn dial(agent: &Agent, port: u16, ipv6: bool) -> Result<u64> {
    match agent.dial(port, ipv6).await {
        Err(error) if error.kind() == Kind::NotFound && !ipv6 => {
            agent.dial(port, true).await.map_err(|_| error)
        }
        answer => answer,
    }
}

async fn copy(agent: &Agent, stream: u64, socket: &mut TcpStream) -> Result<()> {
    let (reader, writer) = socket.split();
    tokio::try_join!(to_guest(agent, stream, reader), from_guest(agent, stream, writer)).map(drop)
}

async fn to_guest(agent: &Agent, stream: u64, mut from: ReadHalf<'_>) -> Result<()> {
    let mut bytes = vec![0; CHUNK as usize];
    loop {
        let count = from.read(&mut bytes).await.context(|| "Could not read from the client".into())?;
        if count == 0 {
            return agent.close_stream(stream, true).await;
        }
        agent.write_stream(stream, &bytes[..count]).await?;
    }
}

async fn from_guest(agent: &Agent, stream: u64, mut to: WriteHalf<'_>) -> Result<()> {
    loop {
        let bytes = agent.read_stream(stream, CHUNK).await?;
        let what = || "Could not write to the client".into();
        if bytes.is_empty() {
            return to.shutdown().await.context(what);
        }
        to.write_all(&bytes).await.context(what)?;
    }
}
