//! The machine of the scripted VMM: its states, its files, and the guest behind its vsock. It insists on what the real
//! one insists on: files that exist, daemons that listen, a vsock's socket that does not.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_proto::{agent_ttrpc, health_ttrpc, microvm_ttrpc};
use futures_util::stream;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::transport::Listener;

use crate::testing::agent::Guest;

/// A status and its reason.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) u16, pub(super) String);

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Refusal(500, error.to_string())
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(500, text.into()))
}

/// Nothing at first.
#[derive(Debug)]
pub(super) struct Machine {
    /// Inodes of the directories in the sandbox's that were there when the VMM began: all that it may write into. The
    /// real one is held to that by Landlock.
    own: Vec<u64>,
    config: Option<Value>,
    state: &'static str,
    guest: Arc<Guest>,
    /// Connections to the daemons, which end with the last one.
    daemons: Vec<StdStream>,
}

impl Machine {
    /// Looks around in the working directory, which is the sandbox's.
    pub(super) fn new() -> std::io::Result<Self> {
        let own = std::fs::read_dir(".")?.map(|entry| Ok(entry?.metadata()?.ino()));
        let own = own.collect::<std::io::Result<_>>()?;
        Ok(Machine { own, config: None, state: "", guest: Arc::default(), daemons: Vec::new() })
    }

    pub(super) fn info(&self) -> Result<String, Refusal> {
        match &self.config {
            Some(config) => Ok(serde_json::json!({ "config": config, "state": self.state }).to_string()),
            None => Err(Refusal(404, "The VM is not created".into())),
        }
    }

    pub(super) fn create(&mut self, body: &str) -> Result<(), Refusal> {
        if self.config.is_some() {
            return refuse("The VM is created already");
        }
        self.config = Some(serde_json::from_str(body)?);
        self.state = "Created";
        Ok(())
    }

    pub(super) async fn boot(&mut self) -> Result<(), Refusal> {
        self.assemble().await?;
        self.state = "Running";
        Ok(())
    }

    pub(super) fn go(&mut self, from: &str, to: &'static str) -> Result<(), Refusal> {
        if self.state != from {
            return refuse(format!("Invalid transition from {} to {to}", self.state));
        }
        self.state = to;
        Ok(())
    }

    pub(super) fn snapshot(&mut self, body: &str) -> Result<(), Refusal> {
        if self.state != "Paused" {
            return refuse("The VM is not paused");
        }
        let into = directory(body, "destination_url")?;
        if !self.own.contains(&std::fs::metadata(&into)?.ino()) {
            return refuse("Permission denied (os error 13)");
        }
        let config = serde_json::to_vec_pretty(&self.config)?;
        std::fs::write(into.join("config.json"), config)?;
        std::fs::write(into.join("state.json"), self.guest.render()?)?;
        Ok(())
    }

    pub(super) async fn restore(&mut self, body: &str) -> Result<(), Refusal> {
        if self.config.is_some() {
            return refuse("The VM is created already");
        }
        let from = directory(body, "source_url")?;
        self.config = Some(serde_json::from_slice(&std::fs::read(from.join("config.json"))?)?);
        self.guest = Arc::new(Guest::parse(&std::fs::read(from.join("state.json"))?)?);
        self.assemble().await?;
        self.state = "Paused";
        Ok(())
    }

    /// Opens all that the machine is made of.
    async fn assemble(&mut self) -> Result<(), Refusal> {
        let Some(config) = self.config.clone() else { return refuse("The VM is not created") };
        for file in ["/payload/kernel", "/payload/initramfs"] {
            std::fs::metadata(path(&config, file)?)?;
        }
        let ram = std::fs::metadata(path(&config, "/memory/zones/0/file")?)?;
        if Some(ram.len()) != config.pointer("/memory/zones/0/size").and_then(Value::as_u64) {
            return refuse("The RAM's file has another size than the zone");
        }
        for fs in config["fs"].as_array().into_iter().flatten() {
            self.daemons.push(StdStream::connect(path(fs, "/socket")?)?);
        }
        let vsock = UnixListener::bind(path(&config, "/vsock/socket")?)?;
        serve(vsock, Arc::clone(&self.guest)).await
    }
}

fn path(value: &Value, at: &str) -> Result<PathBuf, Refusal> {
    match value.pointer(at).and_then(Value::as_str) {
        Some(path) => Ok(path.into()),
        None => refuse(format!("there is no {at}")),
    }
}

fn directory(body: &str, key: &str) -> Result<PathBuf, Refusal> {
    let url = path(&serde_json::from_str(body)?, &format!("/{key}"))?;
    match url.to_str().and_then(|url| url.strip_prefix("file://")).map(Path::new) {
        Some(directory) if directory.is_dir() => Ok(directory.to_owned()),
        _ => refuse(format!("{} is not a directory", url.display())),
    }
}

/// Serves the guest's agent to whoever asks for its port.
async fn serve(vsock: UnixListener, guest: Arc<Guest>) -> Result<(), Refusal> {
    let connections = stream::unfold(vsock, |vsock| async move {
        loop {
            let (stream, _) = vsock.accept().await.ok()?;
            if let Some(stream) = greet(stream).await {
                return Some((Ok(stream), vsock));
            }
        }
    });
    let mut server = ttrpc::asynchronous::Server::new()
        .add_listener(Listener::new(Box::pin(connections)))
        .register_service(agent_ttrpc::create_agent_service(guest.clone()))
        .register_service(health_ttrpc::create_health(guest.clone()))
        .register_service(microvm_ttrpc::create_guest(guest));
    server.start().await?;
    // It serves until the process ends.
    std::mem::forget(server);
    Ok(())
}

/// The handshake of a hybrid vsock.
async fn greet(mut stream: UnixStream) -> Option<UnixStream> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    if line != b"CONNECT 1024\n" {
        return None;
    }
    stream.write_all(b"OK 1073741824\n").await.ok()?;
    Some(stream)
}
