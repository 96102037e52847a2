//! Makes connections of the byte stream of a serial port: each hello (see `agent_proto::serial`) begins one and ends
//! the one before it, as does the host's leaving. One task owns the port for the life of the guest.
//!
//! The kernel learns of hosts that come and go on one queue and gets their data on another: a hello may be read
//! before the news that its host's predecessor has left. So the end of a line counts only if it lasts.

use std::io::{self, ErrorKind};
use std::time::Duration;

use agent_proto::serial::{Scanner, echo};
use futures::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use ttrpc::asynchronous::transport::Listener;

use crate::error::Result;

/// How long no host must be there until its connection is over. The news of two hosts, when both are on their
/// way, come microseconds apart.
const GONE: Duration = Duration::from_millis(50);
/// Bytes that may wait in each direction between the port and the connection served.
const ROOM: usize = 64 * 1024;

/// A byte stream to a host that comes and goes. Neither `read` nor `write` blocks.
pub(super) trait Line: Send + 'static {
    /// 0 bytes: no host is connected now.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Waits until a read or write may do what it could not do since the last call; may be cancelled.
    fn changed(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Serves the connections of `line` from a task of its own.
pub(super) fn listen(line: impl Line) -> Result<Listener> {
    let (accepted, incoming) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = Pump::new(line, accepted).run().await {
            log::error!("The serial port failed, no host can reach this guest any more: {error}");
        }
    });
    let connections = stream::unfold(incoming, |mut incoming: mpsc::Receiver<DuplexStream>| async move {
        incoming.recv().await.map(|connection| (Ok(connection), incoming))
    });
    Ok(Listener::new(connections))
}

struct Pump<L> {
    line: L,
    scanner: Scanner,
    accepted: mpsc::Sender<DuplexStream>,
    /// Our end of the connection served, if there is one.
    served: Option<DuplexStream>,
    /// Read from the line, not yet taken by the connection.
    inward: Vec<u8>,
    /// To be written to the line.
    outward: Vec<u8>,
    /// Since when no host has been there, if one is served.
    gone: Option<Instant>,
}

impl<L: Line> Pump<L> {
    fn new(line: L, accepted: mpsc::Sender<DuplexStream>) -> Self {
        let scanner = Scanner::default();
        Self { line, scanner, accepted, served: None, inward: Vec::new(), outward: Vec::new(), gone: None }
    }

    /// Ends with an error of the line, or when nobody accepts connections any more.
    async fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; ROOM];
        while !self.accepted.is_closed() {
            self.send()?;
            self.receive(&mut buffer).await?;
            self.wait(&mut buffer).await?;
        }
        Ok(())
    }

    /// Writes what the line takes now.
    fn send(&mut self) -> io::Result<()> {
        while !self.outward.is_empty() {
            match self.line.write(&self.outward) {
                Ok(count) => drop(self.outward.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads what the line has, unless the connection has yet to take what came before.
    async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        while self.inward.is_empty() {
            match self.line.read(buffer) {
                Ok(0) => {
                    if self.served.is_some() && self.gone.get_or_insert_with(Instant::now).elapsed() >= GONE {
                        self.hang_up();
                    }
                    return Ok(());
                }
                Ok(count) => self.take(&buffer[..count]).await?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.gone = None;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let seen = self.scanner.feed(bytes);
            if let Some(nonce) = seen.hello {
                // What was on its way from or to the host before this one has lost its meaning.
                self.hang_up();
                self.outward.extend(echo(nonce));
                let (ours, theirs) = duplex(ROOM);
                self.served = Some(ours);
                if self.accepted.send(theirs).await.is_err() {
                    return Ok(());
                }
                self.send()?;
            } else if self.served.is_some() {
                self.inward.extend_from_slice(&bytes[..seen.payload]);
            }
            bytes = &bytes[seen.consumed..];
        }
        Ok(())
    }

    /// The connection served reads its end.
    fn hang_up(&mut self) {
        self.served = None;
        self.inward.clear();
        self.outward.clear();
        self.gone = None;
    }

    /// Waits until there is something to do: on the line, or with the connection served.
    async fn wait(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let (wants_out, wants_in) = (self.outward.is_empty(), !self.inward.is_empty());
        let Some(served) = &mut self.served else {
            return tokio::select! {
                changed = self.line.changed() => changed,
                () = self.accepted.closed() => Ok(()),
            };
        };
        let (mut reader, mut writer) = tokio::io::split(served);
        let gone = self.gone.map_or_else(Instant::now, |since| since + GONE);
        tokio::select! {
            () = sleep_until(gone), if self.gone.is_some() => {}
            changed = self.line.changed() => changed?,
            read = reader.read(buffer), if wants_out => match read {
                Ok(count) if count > 0 => self.outward.extend_from_slice(&buffer[..count]),
                // The server has given the connection up (it was no ttrpc); the host must say hello again.
                _ => self.hang_up(),
            },
            written = writer.write(&self.inward), if wants_in => match written {
                Ok(count) => drop(self.inward.drain(..count)),
                Err(_) => self.hang_up(),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
