//! The handshake of a connection over a virtio-serial port; the shim calls [`hello`], the agent owns a
//! [`Scanner`] for the whole life of its port.
//!
//! A port is one byte stream for the life of the VM: what an earlier host left half-sent, in either direction,
//! comes before the first byte of the next one, and the guest may never have seen the line go down. So the host
//! opens each connection with `HELLO` and a random nonce, and drops what it reads until it sees `ECHO` and that
//! nonce. The guest looks for `HELLO` all the time, also inside a frame: wherever it appears, the connection
//! before it is over.
//!
//! A frame that an earlier host left short of its last seven bytes or less, whose rest is then taken from a
//! `HELLO` that arrives in two pieces, would pass as whole. One write of 24 bytes is not split in practice, and
//! the alternative, holding back every frame that ends in a zero byte, would stall good traffic.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use find::Finder;
pub use scan::{Scanner, Seen};

mod find;
mod scan;

/// Starts a connection, host to guest. Read as the length of a ttrpc frame it is more than the protocol's 4 MiB.
pub const HELLO: [u8; 8] = *b"\0MVMHELO";
/// Answers a [`HELLO`], guest to host.
pub const ECHO: [u8; 8] = *b"\0MVMECHO";

/// Chosen anew by the host for each connection.
pub type Nonce = [u8; 16];

/// Opens a connection as the host: sends a hello and drops what arrives until the guest has echoed it.
/// Not one byte after the echo is read.
///
/// # Errors
/// `TimedOut` when no echo came within `deadline`, `UnexpectedEof` when the stream ended, or the stream's own.
pub async fn hello<S>(stream: &mut S, deadline: Duration) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let late = || {
        let text = format!("The guest agent did not answer on its serial port within {deadline:?}");
        io::Error::new(io::ErrorKind::TimedOut, text)
    };
    tokio::time::timeout(deadline, greet(stream, nonce)).await.map_err(|_| late())?
}

async fn greet<S>(stream: &mut S, nonce: Nonce) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // The guest may be blocked on writing to the earlier host, so reading must not wait for our write.
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (question, reply) = (message(HELLO, nonce), echo(nonce));
    let ask = async {
        writer.write_all(&question).await?;
        writer.flush().await
    };
    tokio::try_join!(ask, skip_past(&mut reader, &reply))?;
    Ok(())
}

async fn skip_past(reader: &mut (impl AsyncRead + Unpin), pattern: &[u8]) -> io::Result<()> {
    let mut finder = Finder::new(pattern);
    let mut buffer = vec![0; pattern.len()];
    while finder.missing() > 0 {
        // Never ask for more than is missing: what follows belongs to the connection.
        let wanted = &mut buffer[..finder.missing()];
        match reader.read(wanted).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => buffer[..count].iter().for_each(|&byte| _ = finder.step(byte)),
        }
    }
    Ok(())
}

/// Waits for a hello as the guest and echoes it. For a stream that ends with its connection; an agent's port
/// does not, and needs a [`Scanner`] that lives on.
///
/// # Errors
/// `UnexpectedEof` when the stream ended first, or the stream's own.
pub async fn answer<S>(stream: &mut S) -> io::Result<Nonce>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut scanner = Scanner::default();
    let mut byte = [0];
    loop {
        if stream.read(&mut byte).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(nonce) = scanner.feed(&byte).hello {
            stream.write_all(&echo(nonce)).await?;
            stream.flush().await?;
            return Ok(nonce);
        }
    }
}

/// The bytes with which the guest answers the hello that carried `nonce`.
#[must_use]
pub fn echo(nonce: Nonce) -> [u8; 24] {
    message(ECHO, nonce)
}

fn message(magic: [u8; 8], nonce: Nonce) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&magic);
    bytes[8..].copy_from_slice(&nonce);
    bytes
}

/// How many bytes of `data`, from its beginning, may go into one message to the guest (at least one, if there
/// are any). A user's data may hold a [`HELLO`]; cut in two messages it has a frame header in its middle, and can't
/// be taken for one. Whoever sends bulk data (standard input, port-forward, files) must cut it here.
#[must_use]
pub fn unambiguous_len(data: &[u8]) -> usize {
    let magic = data.windows(HELLO.len()).position(|window| window == HELLO);
    magic.map_or(data.len(), |start| start + HELLO.len() / 2)
}

#[cfg(test)]
mod tests;
