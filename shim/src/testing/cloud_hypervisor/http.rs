//! As much of HTTP as the scripted VMM needs: one request, one answer, as the real one writes it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What was asked.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    /// `vm.create`
    pub(super) verb: String,
    pub(super) body: String,
}

impl Request {
    /// Reads it; none for anything that is no request to this API.
    pub(super) async fn read(stream: &mut UnixStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let mut words = head.split_ascii_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?);
        let verb = path.strip_prefix("/api/v1/")?.to_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let mut body = vec![0; length.unwrap_or_default()];
        stream.read_exact(&mut body).await.ok()?;
        Some(Self { method, verb, body: String::from_utf8(body).ok()? })
    }
}

/// Success, with a body or without.
pub(super) async fn accept(stream: &mut UnixStream, body: &str) {
    let head = "Server: Cloud Hypervisor API\r\nConnection: keep-alive\r\n";
    let answer = match body {
        "" => format!("HTTP/1.1 204 \r\n{head}\r\n"),
        _ => format!("HTTP/1.1 200 \r\n{head}Content-Length: {}\r\n\r\n{body}", body.len()),
    };
    // Who asked may be gone.
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// A refusal, with its causes as a list.
pub(super) async fn refuse(stream: &mut UnixStream, status: u16, text: &str) {
    let body = serde_json::json!(["Error from API", text]).to_string();
    let head = "Server: Cloud Hypervisor API\r\nContent-Type: application/json\r\n";
    let answer = format!("HTTP/1.1 {status} \r\n{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// The beginning of an answer, and then no more.
pub(super) async fn half(stream: &mut UnixStream) {
    let _ = stream.write_all(b"HTTP/1.1 200 \r\nContent-Length: 40\r\n\r\n{\"sta").await;
}
