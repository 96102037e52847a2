//! Cloud Hypervisor's REST API over its Unix socket. A request is a connection of its own: the VMM was seen to hang
//! on the second request of a connection. Called by this VMM only.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::error::{Context, Error, Kind, Result};

/// Longest answer that is read; the longest, `vm.info`, has some 10 KiB.
const ANSWER: usize = 1 << 20;
/// What an error text shows of an answer, in characters.
const SHOWN: usize = 500;

/// What the VMM can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Ping,
    Create,
    Boot,
    Info,
    Pause,
    Resume,
    Snapshot,
    Restore,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Ping => "vmm.ping",
            Verb::Create => "vm.create",
            Verb::Boot => "vm.boot",
            Verb::Info => "vm.info",
            Verb::Pause => "vm.pause",
            Verb::Resume => "vm.resume",
            Verb::Snapshot => "vm.snapshot",
            Verb::Restore => "vm.restore",
        }
    }

    fn method(self) -> Method {
        match self {
            Verb::Ping | Verb::Info => Method::GET,
            _ => Method::PUT,
        }
    }

    /// Longest wait for the whole answer. The first verb waits for the program to start from a cold disk. Booting loads
    /// the kernel and maps all RAM; a device state is written and read in some 70 ms, or in half a second if virtiofsd
    /// knows 20,000 inodes. All take many times as long where KVM itself is emulated.
    pub(super) fn deadline(self) -> Duration {
        Duration::from_secs(match self {
            Verb::Ping | Verb::Create | Verb::Info | Verb::Pause | Verb::Resume => 10,
            Verb::Boot => 30,
            Verb::Snapshot | Verb::Restore => 60,
        })
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The API of one VMM.
#[derive(Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

impl Api {
    /// At `socket`, where the VMM listens already.
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for something that is told by its verb alone.
    ///
    /// # Errors
    /// `Internal` with verb, status and body when the VMM refuses, `DeadlineExceeded`, or `Unavailable` when it is gone.
    pub(super) async fn call(&self, verb: Verb) -> Result<()> {
        self.request(verb, Bytes::new()).await.map(drop)
    }

    /// Asks for something that `body` describes.
    ///
    /// # Errors
    /// As [`Api::call`].
    pub(super) async fn send(&self, verb: Verb, body: &impl Serialize) -> Result<()> {
        let body = serde_json::to_vec(body).context(|| format!("Could not write the body of {verb}"))?;
        self.request(verb, body.into()).await.map(drop)
    }

    /// Asks a question.
    ///
    /// # Errors
    /// As [`Api::call`]; `Internal` for an answer that is none.
    pub(super) async fn ask<T: DeserializeOwned>(&self, verb: Verb) -> Result<T> {
        let answer = self.request(verb, Bytes::new()).await?;
        serde_json::from_slice(&answer).context(|| {
            format!("Cloud Hypervisor answered {verb} with what is no answer: {}", shown(&answer))
        })
    }

    async fn request(&self, verb: Verb, body: Bytes) -> Result<Bytes> {
        let deadline = verb.deadline();
        let answer = tokio::time::timeout(deadline, self.exchange(verb, body)).await.map_err(|_| {
            let text = format!("Cloud Hypervisor did not answer {verb} within {deadline:?}");
            Error::new(Kind::DeadlineExceeded, text)
        })?;
        let (head, body) =
            answer.kind(Kind::Unavailable, || format!("Could not ask Cloud Hypervisor for {verb}"))?;
        if head.status().is_success() {
            return Ok(body);
        }
        let status = head.status().as_u16();
        let text = format!("Cloud Hypervisor refused {verb} with status {status}: {}", shown(&body));
        Err(Error::new(Kind::Internal, text))
    }

    async fn exchange(&self, verb: Verb, body: Bytes) -> Result<(Response<()>, Bytes), Cause> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(verb.method())
            .uri(format!("/api/v1/{verb}"))
            .header("host", "localhost")
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        // Ends with its sender, which ends the connection.
        let talk = async move { read(sender.send_request(request).await?).await };
        join(talk, connection).await.0
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

async fn read(response: Response<Incoming>) -> Result<(Response<()>, Bytes), Cause> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
    Ok((Response::from_parts(head, ()), body))
}

/// An answer for an error text. A list of causes, as the VMM writes it, becomes a chain.
fn shown(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Vec<String>>(body) {
        Ok(causes) => causes.join(": "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().map(|each| if each.is_control() { ' ' } else { each }).take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    const VERBS: [Verb; 8] = [
        Verb::Ping,
        Verb::Create,
        Verb::Boot,
        Verb::Info,
        Verb::Pause,
        Verb::Resume,
        Verb::Snapshot,
        Verb::Restore,
    ];

    /// An API that reads a request, gives `answer`, and hangs up; and what it was asked, one request each connection.
    fn answering(answer: &str) -> (Api, tempfile::TempDir, tokio::task::JoinHandle<Vec<String>>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = answer.to_owned();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).await.unwrap();
                asked.push(String::from_utf8_lossy(&request[..count]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
                if asked.len() == 2 {
                    return asked;
                }
            }
        });
        (Api::at(socket), dir, asked)
    }

    fn response(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nServer: Cloud Hypervisor API\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn each_request_is_a_connection_of_its_own() {
        let (api, _dir, asked) = answering(&response("200 OK", "{\"answer\": 42}"));
        let answer: serde_json::Value = api.ask(Verb::Info).await.unwrap();
        assert_eq!(answer["answer"], 42);
        api.send(Verb::Snapshot, &serde_json::json!({"destination_url": "file:///x"})).await.unwrap();
        let [info, snapshot] = &asked.await.unwrap()[..] else { panic!() };
        assert!(info.starts_with("GET /api/v1/vm.info HTTP/1.1\r\n"), "{info}");
        assert!(snapshot.starts_with("PUT /api/v1/vm.snapshot HTTP/1.1\r\n"), "{snapshot}");
        assert!(snapshot.ends_with("\r\n\r\n{\"destination_url\":\"file:///x\"}"), "{snapshot}");
    }

    #[tokio::test]
    async fn success_has_no_body() {
        let (api, _dir, _asked) = answering("HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n");
        api.call(Verb::Pause).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_carries_verb_status_and_the_chain_of_causes() {
        let body = "[\"Error from API\",\"The VM could not be paused\",\"bad\\u0007state\"]";
        let (api, _dir, _asked) = answering(&response("500 Internal Server Error", body));
        let error = api.call(Verb::Pause).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
        assert_eq!(
            error.chain(),
            "Cloud Hypervisor refused vm.pause with status 500: Error from API: The VM could not be paused: bad state"
        );
        let (api, _dir, _asked) = answering(&response("404 Not Found", ""));
        assert!(api.call(Verb::Resume).await.unwrap_err().chain().contains("vm.resume with status 404"));
    }

    #[tokio::test]
    async fn half_an_answer_and_none_are_a_vmm_that_is_gone() {
        let whole = response("200 OK", "{\"answer\": 42}");
        for length in [0, 10, 60, whole.len() - 1] {
            let (api, _dir, _asked) = answering(&whole[..length]);
            let error = api.ask::<serde_json::Value>(Verb::Info).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{length}: {}", error.chain());
            assert!(error.chain().contains("vm.info"), "{}", error.chain());
        }
        let error = Api::at("/nonexistent/api".into()).call(Verb::Boot).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_swallowed() {
        let body = "x".repeat(2 * ANSWER);
        let (api, _dir, _asked) = answering(&response("200 OK", &body));
        let error = api.ask::<serde_json::Value>(Verb::Info).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    }

    #[tokio::test]
    async fn nonsense_is_shown() {
        let (api, _dir, _asked) = answering(&response("200 OK", "<html>"));
        let error = api.ask::<serde_json::Value>(Verb::Ping).await.unwrap_err();
        assert!(error.chain().contains("vmm.ping with what is no answer: <html>"), "{}", error.chain());
    }

    #[tokio::test(start_paused = true)]
    async fn every_verb_has_a_deadline_that_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api");
        let _silent = UnixListener::bind(&socket).unwrap();
        let api = Api::at(socket);
        for verb in VERBS {
            let began = tokio::time::Instant::now();
            let error = api.call(verb).await.unwrap_err();
            assert_eq!(error.kind(), Kind::DeadlineExceeded);
            let want = format!("Cloud Hypervisor did not answer {verb} within {:?}", verb.deadline());
            assert_eq!(error.chain(), want);
            assert!(began.elapsed() >= verb.deadline());
        }
    }
}
