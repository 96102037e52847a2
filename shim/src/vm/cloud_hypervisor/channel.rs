//! The way to the guest's agent: a hybrid vsock, a Unix socket of the VMM that passes a connection on to a port of the
//! guest when it is told which. Called by this VMM only.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, Kind, Result};

/// The kata-agent protocol's port.
const PORT: u32 = 1024;
/// Longest wait for one answer of the VMM: while the guest boots it may give none.
const ATTEMPT: Duration = Duration::from_millis(300);
/// Pause between two attempts.
const AGAIN: Duration = Duration::from_millis(20);
/// Longest answer: `OK` and the number of a port.
const ANSWER: usize = 32;

/// Connects to the agent behind `socket`, again and again until it listens or `deadline` has passed.
///
/// # Errors
/// `DeadlineExceeded`; `Unavailable` at once when there is no such socket, as the VMM made it before it ran the guest.
pub(super) async fn dial(socket: &Path, deadline: Duration) -> Result<UnixStream> {
    let end = Instant::now() + deadline;
    loop {
        let failure = match timeout(ATTEMPT, attempt(socket)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("The guest's vsock {} is gone", socket.display());
                return Err(Error::caused(Kind::Unavailable, text, error));
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {ATTEMPT:?}")),
        };
        if Instant::now() + AGAIN >= end {
            let text = format!("The guest's agent did not answer within {deadline:?}");
            return Err(Error::caused(Kind::DeadlineExceeded, text, failure));
        }
        sleep(AGAIN).await;
    }
}

async fn attempt(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await?;
    let answer = line(&mut stream).await?;
    if answer.starts_with(b"OK ") {
        return Ok(stream);
    }
    let shown = String::from_utf8_lossy(&answer).into_owned();
    Err(io::Error::other(format!("the VMM answered {shown:?} instead of OK")))
}

/// One line, and not a byte more: what follows is the agent's.
async fn line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() < ANSWER {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            byte => line.push(byte),
        }
    }
    Err(io::Error::other("the VMM answered a line without end"))
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;
    use tokio::net::UnixListener;

    use super::*;

    /// A VMM that gives one of `answers` to each connection, and the last one to all that follow.
    fn vmm(dir: &Path, answers: &'static [&'static str]) -> std::path::PathBuf {
        let socket = dir.join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            for answer in answers.iter().chain(std::iter::repeat(answers.last().unwrap())) {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut asked = String::new();
                tokio::io::AsyncBufReadExt::read_line(&mut stream, &mut asked).await.unwrap();
                assert_eq!(asked, "CONNECT 1024\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                // Without an answer it hangs up, as for a port on which nobody listens.
                kept.extend((!answer.is_empty()).then_some(stream));
            }
        });
        socket
    }

    #[tokio::test]
    async fn it_goes_on_until_the_agent_listens_and_takes_nothing_of_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let socket = vmm(dir.path(), &["", "", "OK 4711\nagent"]);
        let mut stream = dial(&socket, Duration::from_secs(10)).await.unwrap();
        let mut words = [0; 5];
        stream.read_exact(&mut words).await.unwrap();
        assert_eq!(&words, b"agent");
    }

    #[tokio::test]
    async fn a_vanished_socket_ends_the_wait_at_once() {
        let began = std::time::Instant::now();
        let error = dial(Path::new("/nonexistent/vsock"), Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_vmm_that_says_nothing_is_left_at_the_deadline_with_the_last_reason() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error = dial(&socket, Duration::from_millis(400)).await.unwrap_err();
        assert_eq!(error.chain(), "The guest's agent did not answer within 400ms: no answer within 300ms");
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = vmm(dir.path(), &["NO\n"]);
        let error = dial(&socket, Duration::from_millis(50)).await.unwrap_err();
        assert!(error.chain().contains("the VMM answered \"NO\" instead of OK"), "{}", error.chain());
        std::fs::remove_file(&socket).unwrap();
        let socket = vmm(dir.path(), &["xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"]);
        let error = dial(&socket, Duration::from_millis(50)).await.unwrap_err();
        assert!(error.chain().contains("a line without end"), "{}", error.chain());
    }
}
