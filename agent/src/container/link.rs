//! The socket between the agent and a helper: both ends, so that they can't drift apart. The agent sends a [`Job`] and later
//! [`Go`]; the helper and the process it becomes answer [`Report`]s. Their end closes on execve, which is the sign of success.
//! A frame is a 32-bit length and JSON; with [`Report::Terminal`] comes a file descriptor.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::plan::{Plan, Process};
use crate::error::{Context as _, Error, Kind, Result};

/// Longest frame: a wire message, which a job is made from, is at most 4 MiB; JSON and the filter make it longer.
const LONGEST: usize = 32 << 20;
/// Longest text of an error, so that a report goes out in one piece.
const LONGEST_TEXT: usize = 8192;

/// What a helper is for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Job {
    /// Set up a container and wait for [`Go`] before its program.
    Create { plan: Box<Plan>, cgroup: PathBuf },
    /// Run one more process in the container whose first process is the inherited pidfd.
    Exec { process: Box<Process>, cgroup: PathBuf },
}

/// Run the program now.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Go;

/// What a helper has to say.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The pid of the process-to-be, a child of the agent.
    Forked(i32),
    /// The master of its terminal comes with this.
    Terminal,
    /// All is set up; waits for [`Go`].
    Ready,
    /// Nothing will run.
    Failed { kind: Kind, text: String },
}

impl Report {
    pub(super) fn failed(error: &Error) -> Self {
        Self::Failed { kind: error.kind(), text: clip(error.chain()) }
    }
}

fn clip(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST_TEXT));
    text
}

fn frame(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)
        .context(|| "Could not encode a message of the helper's socket")?;
    let length = bytes.len() - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= LONGEST);
    let header = header
        .ok_or_else(|| Error::new(Kind::InvalidArgument, format!("A spec of {length} bytes is too long")))?;
    if let Some(place) = bytes.first_chunk_mut::<4>() {
        *place = header.to_le_bytes();
    }
    Ok(bytes)
}

fn length(header: [u8; 4]) -> Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(Error::new(Kind::Internal, format!("A helper's message claims {length} bytes")));
    }
    Ok(length)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).context(|| "Could not understand a message of the helper's socket")
}

/// The agent's end.
#[derive(Debug)]
pub(super) struct AgentEnd {
    stream: UnixStream,
}

impl AgentEnd {
    /// A connected pair; the other end is to be inherited by the helper.
    pub(super) fn pair() -> Result<(Self, OwnedFd)> {
        let make = || -> io::Result<_> {
            let (ours, theirs) = Blocking::pair()?;
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, theirs.into()))
        };
        let (stream, theirs) = make().context(|| "Could not make a socket for a helper")?;
        Ok((Self { stream }, theirs))
    }

    pub(super) async fn send(&mut self, message: &impl Serialize) -> Result<()> {
        self.stream.write_all(&frame(message)?).await.context(|| "Could not write to the helper")
    }

    /// The next report, with the file descriptor that came with it; `None` when the other end is closed.
    pub(super) async fn receive(&mut self) -> Result<Option<(Report, Option<OwnedFd>)>> {
        let mut fd = None;
        let mut header = [0; 4];
        if !self.fill(&mut header, &mut fd).await.context(|| "Could not read from the helper")? {
            return Ok(None);
        }
        let mut body = vec![0; length(header)?];
        if !self.fill(&mut body, &mut fd).await.context(|| "Could not read from the helper")? {
            return Err(Error::new(Kind::Internal, "A helper stopped in the middle of a message"));
        }
        Ok(Some((parse(&body)?, fd)))
    }

    /// False at the end of the stream before the first byte.
    async fn fill(&self, buffer: &mut [u8], fd: &mut Option<OwnedFd>) -> io::Result<bool> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self
                .stream
                .async_io(Interest::READABLE, || receive_some(self.stream.as_fd(), rest, fd))
                .await?
            {
                0 if filled == 0 => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(true)
    }
}

fn receive_some(socket: BorrowedFd<'_>, buffer: &mut [u8], fd: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = item {
            *fd = fds.last();
        }
    }
    Ok(message.bytes)
}

/// The helper's end. Blocks; the agent watches over the time.
#[derive(Debug)]
pub(super) struct HelperEnd {
    stream: Blocking,
}

impl HelperEnd {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { stream: Blocking::from(fd) }
    }

    pub(super) fn send(&self, report: &Report, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = frame(report)?;
        let fds: Vec<_> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        // Reports are far shorter than the socket's buffer: they go out whole.
        let sent = sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
            .context(|| "Could not report to the agent")?;
        if sent == bytes.len() {
            return Ok(());
        }
        Err(Error::new(Kind::Internal, format!("Only {sent} of {} bytes of a report went out", bytes.len())))
    }

    pub(super) fn receive<T: DeserializeOwned>(&self) -> Result<T> {
        let mut stream = &self.stream;
        let mut header = [0; 4];
        stream.read_exact(&mut header).context(|| "Could not read from the agent")?;
        let mut body = vec![0; length(header)?];
        stream.read_exact(&mut body).context(|| "Could not read from the agent")?;
        parse(&body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reports_and_descriptors_arrive_and_a_closed_end_is_none() {
        let (mut agent, theirs) = AgentEnd::pair().unwrap();
        let helper = HelperEnd::new(theirs);
        agent.send(&Go).await.unwrap();
        helper.receive::<Go>().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        helper.send(&Report::Forked(7), None).unwrap();
        helper.send(&Report::Terminal, Some(file.as_fd())).unwrap();
        let long = Error::new(Kind::NotFound, "é".repeat(LONGEST_TEXT));
        helper.send(&Report::failed(&long), None).unwrap();
        let (first, none) = agent.receive().await.unwrap().unwrap();
        assert!(matches!(first, Report::Forked(7)) && none.is_none());
        let (second, fd) = agent.receive().await.unwrap().unwrap();
        assert!(matches!(second, Report::Terminal) && fd.is_some());
        let (third, _) = agent.receive().await.unwrap().unwrap();
        assert!(matches!(third, Report::Failed { kind: Kind::NotFound, text } if text.len() == LONGEST_TEXT));
        drop(helper);
        assert!(agent.receive().await.unwrap().is_none());
    }
}
