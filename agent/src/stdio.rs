//! The standard streams of one process, as the agent holds them: `container` makes them, the stream RPCs use them.
//! Bytes stay in the pipe or terminal until the call that answers them, so back-pressure reaches the process, and
//! a call that is dropped while it waits has taken nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, MutexGuard};

use crate::error::{Context as _, Error, Kind, Result};

/// The most one read answers: an answer fits in the message limits of every transport with room to spare.
pub const READ_LIMIT: usize = 32 * 1024;

type Fd = Arc<AsyncFd<OwnedFd>>;

/// The agent's side of a process's standard streams.
#[derive(Debug)]
pub struct Streams {
    /// What the process reads.
    pub stdin: Input,
    /// What it writes.
    pub stdout: Output,
    /// What it complains; ended from the start with a terminal.
    pub stderr: Output,
    terminal: Option<Fd>,
}

/// The process's side of its standard streams.
#[derive(Debug)]
pub struct ProcessEnds {
    /// To become fd 0.
    pub stdin: OwnedFd,
    /// To become fd 1.
    pub stdout: OwnedFd,
    /// To become fd 2.
    pub stderr: OwnedFd,
}

impl Streams {
    /// Three pipes.
    ///
    /// # Errors
    /// If no file descriptor is left.
    pub fn pipes() -> Result<(Self, ProcessEnds)> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).context(|| "Could not make a pipe");
        let ((stdin, ours_in), (ours_out, stdout), (ours_err, stderr)) = (pipe()?, pipe()?, pipe()?);
        let streams = Self {
            stdin: Input::new(watch(ours_in)?, false),
            stdout: Output::new(Some(watch(ours_out)?)),
            stderr: Output::new(Some(watch(ours_err)?)),
            terminal: None,
        };
        Ok((streams, ProcessEnds { stdin, stdout, stderr }))
    }

    /// Both directions through the master of a terminal.
    ///
    /// # Errors
    /// If it cannot be watched for readiness.
    pub fn terminal(master: OwnedFd) -> Result<Self> {
        let master = watch(master)?;
        Ok(Self {
            stdin: Input::new(master.clone(), true),
            stdout: Output::new(Some(master.clone())),
            stderr: Output::new(None),
            terminal: Some(master),
        })
    }

    /// Sets the terminal's size.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] without a terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::new(Kind::FailedPrecondition, "The process has no terminal to resize"));
        };
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal.get_ref(), size)
            .context(|| format!("Could not set the terminal's size to {columns}x{rows}"))
    }
}

/// One direction out of the process.
#[derive(Debug)]
pub struct Output {
    /// `None` after the end. One reader at a time, in the order of their calls.
    source: Mutex<Option<Fd>>,
}

impl Output {
    fn new(source: Option<Fd>) -> Self {
        Self { source: Mutex::new(source) }
    }

    /// Waits for data and answers at most `len` bytes and [`READ_LIMIT`] of it; empty at the end of the stream.
    /// Between taking the bytes and answering there is no point at which the call could be dropped.
    ///
    /// # Errors
    /// If reading fails, or `len` is 0, which would look like the end.
    pub async fn read(&self, len: usize) -> Result<Vec<u8>> {
        if len == 0 {
            return Err(Error::new(Kind::InvalidArgument, "Could not read 0 bytes: ask for 1 or more"));
        }
        let mut source = self.source.lock().await;
        let Some(fd) = source.clone() else { return Ok(Vec::new()) };
        let mut data = vec![0; len.min(READ_LIMIT)];
        loop {
            let mut ready = fd.readable().await.context(|| "Could not wait for output")?;
            let Ok(result) = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut data)?)) else {
                continue;
            };
            match result {
                Ok(count) if count > 0 => {
                    data.truncate(count);
                    return Ok(data);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal tells its end, no process holding its other side, by EIO.
                Err(error) if error.raw_os_error() != Some(libc::EIO) => {
                    return Err(Error::caused(Kind::Internal, "Could not read output", error));
                }
                Ok(_) | Err(_) => {
                    *source = None;
                    return Ok(Vec::new());
                }
            }
        }
    }

    /// Whether the end was answered.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.source.try_lock().is_ok_and(|source| source.is_none())
    }
}

/// The direction into the process.
#[derive(Debug)]
pub struct Input {
    /// `None` once closed. One writer at a time, in the order of their calls.
    sink: Mutex<Option<Fd>>,
    closing: AtomicBool,
    terminal: bool,
}

/// A writer's turn; at its end, however it ends, a close that came meanwhile is carried out.
struct Turn<'a> {
    sink: MutexGuard<'a, Option<Fd>>,
    closing: &'a AtomicBool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.closing.load(Ordering::Acquire) {
            self.sink.take();
        }
    }
}

impl Input {
    fn new(sink: Fd, terminal: bool) -> Self {
        Self { sink: Mutex::new(Some(sink)), closing: AtomicBool::new(false), terminal }
    }

    /// Writes all of `data`, waiting while the process does not read.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the stream is closed, on either side.
    pub async fn write(&self, data: &[u8]) -> Result<()> {
        let turn = Turn { sink: self.sink.lock().await, closing: &self.closing };
        let closed = || Error::new(Kind::FailedPrecondition, "The process's standard input is closed");
        let fd = turn.sink.as_ref().ok_or_else(closed)?;
        let mut rest = data;
        while !rest.is_empty() {
            let mut ready = fd.writable().await.context(|| "Could not wait for standard input")?;
            let Ok(result) = ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), rest)?)) else { continue };
            match result {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::EIO)) => {
                    return Err(closed());
                }
                Err(error) => {
                    return Err(Error::caused(Kind::Internal, "Could not write standard input", error));
                }
            }
        }
        Ok(())
    }

    /// Closes the stream after the write in flight, if there is one. A terminal stays open: it is the output too.
    pub fn close(&self) {
        if self.terminal {
            return;
        }
        self.closing.store(true, Ordering::Release);
        if let Ok(mut sink) = self.sink.try_lock() {
            sink.take();
        }
    }
}

fn watch(fd: OwnedFd) -> Result<Fd> {
    set_nonblocking(&fd).context(|| "Could not make a stream non-blocking")?;
    // SAFETY: an OwnedFd names the same open file until it is dropped, which AsyncFd does after deregistering.
    let watched = unsafe { AsyncFd::register(fd) };
    Ok(Arc::new(watched.context(|| "Could not watch a stream")?))
}

fn set_nonblocking(fd: impl AsFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_dropped_read_takes_nothing_and_the_end_is_empty() {
        let (streams, ends) = Streams::pipes().unwrap();
        assert!(timeout(Duration::from_millis(20), streams.stdout.read(10)).await.is_err());
        nix::unistd::write(&ends.stdout, b"hello world").unwrap();
        assert_eq!(timeout(LONG, streams.stdout.read(5)).await.unwrap().unwrap(), b"hello");
        assert_eq!(timeout(LONG, streams.stdout.read(99)).await.unwrap().unwrap(), b" world");
        assert_eq!(streams.stdout.read(0).await.unwrap_err().kind(), Kind::InvalidArgument);
        assert!(!streams.stdout.ended());
        drop(ends);
        assert!(timeout(LONG, streams.stdout.read(5)).await.unwrap().unwrap().is_empty());
        assert!(streams.stdout.ended());
        assert_eq!(streams.resize(1, 1).unwrap_err().kind(), Kind::FailedPrecondition);
    }

    #[tokio::test]
    async fn input_waits_for_its_reader_and_closes_after_the_write_in_flight() {
        let (streams, ends) = Streams::pipes().unwrap();
        let streams = Arc::new(streams);
        let data = vec![7; 300_000];
        let writer = tokio::spawn({
            let (streams, data) = (streams.clone(), data.clone());
            async move { streams.stdin.write(&data).await }
        });
        let reader = tokio::task::spawn_blocking(move || {
            let mut seen = Vec::new();
            io::Read::read_to_end(&mut std::fs::File::from(ends.stdin), &mut seen).map(|_| seen)
        });
        tokio::task::yield_now().await;
        streams.stdin.close();
        // Either the write was under way and is finished first, or it had not begun and finds the stream closed.
        match timeout(LONG, writer).await.unwrap().unwrap() {
            Ok(()) => assert_eq!(timeout(LONG, reader).await.unwrap().unwrap().unwrap(), data),
            Err(error) => assert_eq!(error.kind(), Kind::FailedPrecondition),
        }
        assert_eq!(streams.stdin.write(b"x").await.unwrap_err().kind(), Kind::FailedPrecondition);
    }

    #[tokio::test]
    async fn a_write_without_reader_fails_and_a_stuck_one_can_be_dropped() {
        let (streams, ends) = Streams::pipes().unwrap();
        let big = vec![0; 1 << 20];
        assert!(timeout(Duration::from_millis(20), streams.stdin.write(&big)).await.is_err());
        drop(ends);
        let error = timeout(LONG, streams.stdin.write(b"x")).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
    }

    #[tokio::test]
    async fn a_terminal_ends_when_its_last_holder_is_gone() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let streams = Streams::terminal(pty.master).unwrap();
        streams.resize(40, 132).unwrap();
        let size = rustix::termios::tcgetwinsize(&pty.slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (40, 132));
        nix::unistd::write(&pty.slave, b"hi").unwrap();
        assert_eq!(timeout(LONG, streams.stdout.read(99)).await.unwrap().unwrap(), b"hi");
        assert!(streams.stderr.read(1).await.unwrap().is_empty());
        streams.stdin.close();
        timeout(LONG, streams.stdin.write(b"still open\n")).await.unwrap().unwrap();
        drop(pty.slave);
        // The echo of what was written may come first.
        while !timeout(LONG, streams.stdout.read(99)).await.unwrap().unwrap().is_empty() {}
        assert!(streams.stdout.ended());
    }
}
