//! TCP connections to the guest's own loopback that the host forwards to, each named by a number. They belong to one
//! connection of the host: `rpc` makes a set for each, and they close with it. The kernel's socket buffers bound what
//! waits in each direction.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::{Context as _, Error, Kind, Result};

/// Most open streams: above what a port-forward opens, below what would trouble the agent.
const MOST: usize = 256;
/// Most bytes of one read.
const CHUNK: usize = 32 * 1024;
/// Loopback accepts or refuses at once; a listener with a full backlog does neither.
const CONNECT: Duration = Duration::from_secs(10);

/// The streams of one host connection.
#[derive(Debug, Default)]
pub struct Streams {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    open: HashMap<u64, Arc<Stream>>,
    /// Being connected.
    pending: usize,
}

/// Each half has a lock, held by the one call that may use it.
#[derive(Debug)]
struct Stream {
    reader: tokio::sync::Mutex<OwnedReadHalf>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    /// Set once the stream is dropped.
    closed: watch::Sender<bool>,
}

impl Streams {
    /// Connects to a port of the guest's loopback.
    ///
    /// # Errors
    /// `NotFound` if nobody listens, `FailedPrecondition` for too many streams, `DeadlineExceeded`.
    pub async fn dial(&self, port: u32, ipv6: bool) -> Result<u64> {
        let wrong = || Error::new(Kind::InvalidArgument, format!("{port} is no TCP port"));
        let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let ip = if ipv6 { IpAddr::from(Ipv6Addr::LOCALHOST) } else { IpAddr::from(Ipv4Addr::LOCALHOST) };
        let _place = self.place()?;
        let to = SocketAddr::new(ip, port);
        let text = format!("Could not connect to {to} in the guest");
        let stream = match timeout(CONNECT, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                return Err(Error::caused(Kind::NotFound, text, error));
            }
            Ok(Err(error)) => return Err(error).context(|| text),
            Err(late) => return Err(Error::caused(Kind::DeadlineExceeded, text, late)),
        };
        let (reader, writer) = stream.into_split();
        let (reader, writer) = (tokio::sync::Mutex::new(reader), tokio::sync::Mutex::new(writer));
        let mut table = self.table();
        table.last += 1;
        let number = table.last;
        table.open.insert(number, Arc::new(Stream { reader, writer, closed: watch::Sender::new(false) }));
        Ok(number)
    }

    /// Waits for bytes and answers at most `len` of them, and 32 KiB; none at the end of the stream. No deadline.
    /// A dropped call loses nothing.
    ///
    /// # Errors
    /// `NotFound` for an unknown stream, `FailedPrecondition` if it was closed meanwhile, else the connection's.
    pub async fn read(&self, stream: u64, len: u32) -> Result<Vec<u8>> {
        let open = self.get(stream)?;
        let most = usize::try_from(len).unwrap_or(CHUNK).clamp(1, CHUNK);
        let mut bytes = vec![0; most];
        let read = async { open.reader.lock().await.read(&mut bytes).await };
        let count = tokio::select! {
            count = read => count.context(|| format!("Could not read stream {stream}"))?,
            () = open.is_closed() => return Err(closed(stream)),
        };
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Writes all of `bytes`; waits while the other end does not read. No deadline.
    ///
    /// # Errors
    /// As [`Streams::read`].
    pub async fn write(&self, stream: u64, bytes: &[u8]) -> Result<()> {
        let open = self.get(stream)?;
        let write = async { open.writer.lock().await.write_all(bytes).await };
        tokio::select! {
            written = write => written.context(|| format!("Could not write stream {stream}")),
            () = open.is_closed() => Err(closed(stream)),
        }
    }

    /// Ends the sending side once the write in flight is done, or drops the stream and whatever waits for it. A stream
    /// that is unknown is closed.
    ///
    /// # Errors
    /// The connection's, of its sending side only.
    pub async fn close(&self, stream: u64, write_only: bool) -> Result<()> {
        if write_only {
            let open = self.get(stream)?;
            let text = || format!("Could not end the sending side of stream {stream}");
            return match open.writer.lock().await.shutdown().await {
                // The other end has closed it all by now.
                Err(error) if error.kind() == std::io::ErrorKind::NotConnected => Ok(()),
                other => other.context(text),
            };
        }
        let dropped = self.table().open.remove(&stream);
        if let Some(open) = dropped {
            open.closed.send_replace(true);
        }
        Ok(())
    }

    fn get(&self, stream: u64) -> Result<Arc<Stream>> {
        let unknown = || Error::new(Kind::NotFound, format!("There is no stream {stream}"));
        self.table().open.get(&stream).cloned().ok_or_else(unknown)
    }

    fn place(&self) -> Result<Place<'_>> {
        let mut table = self.table();
        if table.open.len() + table.pending >= MOST {
            let text = format!("{MOST} streams are open, the most there may be: close one");
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        table.pending += 1;
        drop(table);
        Ok(Place(self))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    async fn is_closed(&self) {
        // Its sender lives as long as `self`, so this ends only when the flag is set.
        _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }
}

fn closed(stream: u64) -> Error {
    Error::new(Kind::FailedPrecondition, format!("Stream {stream} was closed"))
}

/// A stream being connected, counted until it is open or has failed.
struct Place<'a>(&'a Streams);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.table().pending -= 1;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn within<T>(work: impl Future<Output = T>) -> T {
        timeout(PATIENCE, work).await.unwrap()
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_side_ends_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        let streams = Streams::default();
        let (stream, accepted) =
            within(async { tokio::join!(streams.dial(port, false), listener.accept()) }).await;
        let (stream, (mut peer, _)) = (stream.unwrap(), accepted.unwrap());
        within(streams.write(stream, b"question")).await.unwrap();
        within(streams.close(stream, true)).await.unwrap();
        let mut question = String::new();
        within(peer.read_to_string(&mut question)).await.unwrap();
        assert_eq!(question, "question");
        peer.write_all(b"answer").await.unwrap();
        assert_eq!(within(streams.read(stream, 3)).await.unwrap(), b"ans");
        assert_eq!(
            within(streams.read(stream, 0)).await.unwrap(),
            b"w",
            "at least one byte, else it would be an end"
        );
        drop(peer);
        assert_eq!(within(streams.read(stream, 100)).await.unwrap(), b"er");
        assert_eq!(within(streams.read(stream, 100)).await.unwrap(), b"");
        within(streams.close(stream, false)).await.unwrap();
        assert_eq!(within(streams.read(stream, 1)).await.unwrap_err().kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn a_close_wakes_whoever_waits_for_the_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        let streams = Streams::default();
        let stream = within(streams.dial(port, false)).await.unwrap();
        let close = async {
            tokio::task::yield_now().await;
            streams.close(stream, false).await
        };
        let (read, closed) = within(async { tokio::join!(streams.read(stream, 10), close) }).await;
        closed.unwrap();
        assert_eq!(read.unwrap_err().kind(), Kind::FailedPrecondition);
    }

    #[tokio::test]
    async fn what_cannot_be_dialled_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let streams = Streams::default();
        let error = within(streams.dial(port.into(), false)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.chain().contains(&format!("127.0.0.1:{port}")), "{}", error.chain());
        for port in [0, 65536] {
            assert_eq!(within(streams.dial(port, true)).await.unwrap_err().kind(), Kind::InvalidArgument);
        }
        assert_eq!(streams.table().pending, 0);
    }

    #[tokio::test]
    async fn too_many_are_refused() {
        let streams = Streams::default();
        streams.table().pending = MOST;
        assert_eq!(within(streams.dial(1, false)).await.unwrap_err().kind(), Kind::FailedPrecondition);
    }
}
