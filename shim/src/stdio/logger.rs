//! Logging programs, `binary:///<path>?<argument>=<value>`: containerd's protocol for them. The program reads stdout
//! on fd 3 and stderr on fd 4, and closes fd 5 or writes to it when it is ready. Called by `sink`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::sink::Sink;
use super::{Label, Output};
use crate::error::{Context, Error, Kind, Result};
use crate::task::Streams;

/// containerd sets none; a program that never gets ready must not hold up Create for ever.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long a program may take after its streams have ended until it is told to end.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// What containerd's own shim gives a program between SIGTERM and SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(12);
/// The program's descriptors: stdout, stderr, ready.
const FIRST_FD: i32 = 3;

/// Starts the program that `uri` (without `binary://`) names and waits until it is ready.
pub(super) async fn start(uri: &str, streams: &Streams, label: Label<'_>) -> Result<Vec<(Output, Sink)>> {
    let (program, arguments) = parse(uri)?;
    let failed = || format!("Could not start the logging program {program}");
    let [(stdout_theirs, stdout), (stderr_theirs, stderr), (ready, ready_theirs)] =
        [new_pipe().context(failed)?, new_pipe().context(failed)?, new_pipe().context(failed)?];
    let mut command = Command::new(&program);
    command.args(arguments).env("CONTAINER_ID", label.container).env("CONTAINER_NAMESPACE", label.namespace);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    pass(&mut command, [stdout_theirs, stderr_theirs, ready_theirs]).context(failed)?;
    let child = command.spawn().context(failed)?;
    // It owns the program's ends, and our copies of them must be closed for the ready pipe to end.
    drop(command);
    wait_until_ready(ready, &program).await?;

    let open = watch::Sender::new(());
    let mut sinks: Vec<(Output, Sink)> = Vec::new();
    for (output, end) in [(Output::Stdout, stdout), (Output::Stderr, stderr)] {
        if output == Output::Stdout || !streams.terminal {
            let pipe = pipe::Sender::from_owned_fd(end).context(failed)?;
            sinks.push((output, Box::pin(ToLogger { pipe, _open: open.subscribe() })));
        }
    }
    tokio::spawn(attend(child, open, program));
    Ok(sinks)
}

/// The program's path and arguments: each key of the query, followed by its value.
fn parse(uri: &str) -> Result<(String, Vec<String>)> {
    let malformed = || Error::new(Kind::InvalidArgument, format!("Malformed logging program binary://{uri}"));
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let path = decode(path).filter(|path| path.starts_with('/')).ok_or_else(malformed)?;
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        for part in [key, value] {
            arguments.push(decode(&part.replace('+', " ")).ok_or_else(malformed)?);
        }
    }
    Ok((path, arguments))
}

/// Resolves `%41`; none if that is malformed or no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// Gives the child these descriptors as 3, 4 and 5.
fn pass(command: &mut Command, ends: [OwnedFd; 3]) -> io::Result<()> {
    // Out of the way first: in the child, no copy may land on a descriptor that is still to be copied.
    let mut sources = Vec::new();
    for end in ends {
        let moved = fcntl(&end, FcntlArg::F_DUPFD_CLOEXEC(FIRST_FD + 3))?;
        // SAFETY: fcntl has just made this descriptor for us.
        sources.push(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(moved) });
    }
    let copy = move || {
        for (target, source) in (FIRST_FD..).zip(&sources) {
            // SAFETY: dup2 takes two integers; whatever the child has at 3 to 5 is closed on exec anyway.
            if unsafe { libc::dup2(source.as_raw_fd(), target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure calls only dup2, which is safe between fork and exec, and allocates nothing.
    unsafe { command.pre_exec(copy) };
    Ok(())
}

async fn wait_until_ready(ready: OwnedFd, program: &str) -> Result<()> {
    let failed = || format!("Could not wait for the logging program {program}");
    let mut ready = pipe::Receiver::from_owned_fd(ready).context(failed)?;
    // The end of file counts as ready: the program has closed the descriptor, or has ended, which shows soon enough.
    match timeout(READY_LIMIT, ready.read(&mut [0])).await {
        Ok(read) => read.map(drop).context(failed),
        Err(_) => {
            let text =
                format!("The logging program {program} was not ready within {} s", READY_LIMIT.as_secs());
            Err(Error::new(Kind::DeadlineExceeded, text))
        }
    }
}

/// Collects the program; ends it once both streams are closed.
async fn attend(mut child: Child, open: watch::Sender<()>, program: String) {
    let ended = tokio::select! {
        ended = child.wait() => ended,
        () = open.closed() => end(&mut child).await,
    };
    match ended {
        Ok(status) => log::debug!("Logging program {program} ended: {status}"),
        Err(error) => log::warn!("Could not end logging program {program}: {error}"),
    }
}

async fn end(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    // Reading to the end of both streams is what it is for; a signal at once could cost the last lines.
    if let Ok(ended) = timeout(READ_LIMIT, child.wait()).await {
        return ended;
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // The child is not collected, so the id is still its own.
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    }
    if let Ok(ended) = timeout(END_LIMIT, child.wait()).await {
        return ended;
    }
    child.kill().await?;
    child.wait().await
}

/// A stream to the program. The program is ended when none is left.
#[derive(Debug)]
struct ToLogger {
    pipe: pipe::Sender,
    _open: watch::Receiver<()>,
}

impl AsyncWrite for ToLogger {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_becomes_arguments() {
        let (program, arguments) = parse("/usr/bin/my%20logger?--id=a%2Fb&flag&x=1+2").unwrap();
        assert_eq!(
            (program.as_str(), arguments.join("|").as_str()),
            ("/usr/bin/my logger", "--id|a/b|flag||x|1 2")
        );
        for uri in ["", "relative", "/a%zz", "/a%4", "/a?b=%ff", "/a%00b"] {
            assert_eq!(parse(uri).unwrap_err().kind(), Kind::InvalidArgument, "{uri}");
        }
    }
}
