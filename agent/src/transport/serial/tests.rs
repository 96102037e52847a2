//! Tests of the serial transport over a line that can be cut at any byte, as QEMU's port can.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_proto::serial::{HELLO, hello};
use futures::StreamExt as _;
use tokio::sync::Notify;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A port: the pump holds it as its [`Line`], the test plays the VMM.
#[derive(Clone, Default)]
struct Wire(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    guest: Notify,
    host: Notify,
}

#[derive(Default)]
struct State {
    to_guest: VecDeque<u8>,
    to_host: VecDeque<u8>,
    /// Which host is there now; they are counted from 1.
    connected: Option<usize>,
    hosts: usize,
    /// Reads by the guest while no host was there: a busy loop shows here.
    idle_reads: usize,
}

impl Line for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock().unwrap();
        if state.to_guest.is_empty() && state.connected.is_none() {
            state.idle_reads += 1;
            return Ok(0);
        }
        let count = buffer.len().min(state.to_guest.len());
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        for (slot, byte) in buffer.iter_mut().zip(state.to_guest.drain(..count)) {
            *slot = byte;
        }
        Ok(count)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock().unwrap();
        let count = bytes.len().min(4096 - state.to_host.len());
        if state.connected.is_none() || count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        state.to_host.extend(&bytes[..count]);
        self.0.host.notify_one();
        Ok(count)
    }

    async fn changed(&self) -> io::Result<()> {
        self.0.guest.notified().await;
        Ok(())
    }
}

impl Wire {
    /// Connects a host; the guest sees it leave when the stream is dropped, unless the next one is there first.
    fn connect(&self) -> DuplexStream {
        let (host, vmm) = duplex(256);
        let wire = self.clone();
        let mut state = self.0.state.lock().unwrap();
        state.hosts += 1;
        state.connected = Some(state.hosts);
        let number = state.hosts;
        wire.0.guest.notify_one();
        tokio::spawn(async move { wire.carry(vmm, number).await });
        host
    }

    async fn carry(self, vmm: DuplexStream, number: usize) {
        let (mut reader, mut writer) = tokio::io::split(vmm);
        let mut buffer = [0; 100];
        loop {
            tokio::select! {
                read = reader.read(&mut buffer) => match read {
                    Ok(count) if count > 0 => self.push(&buffer[..count]),
                    _ => break,
                },
                () = self.0.host.notified() => {
                    let bytes = self.pull(number);
                    self.0.guest.notify_one();
                    if writer.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
        let mut state = self.0.state.lock().unwrap();
        if state.connected == Some(number) {
            state.connected = None;
        }
        self.0.guest.notify_one();
        self.0.host.notify_one(); // a notification meant for the next host may have come here
    }

    fn pull(&self, number: usize) -> Vec<u8> {
        let mut state = self.0.state.lock().unwrap();
        if state.connected == Some(number) { state.to_host.drain(..).collect() } else { Vec::new() }
    }

    fn push(&self, bytes: &[u8]) {
        self.0.state.lock().unwrap().to_guest.extend(bytes);
        self.0.guest.notify_one();
    }
}

/// Sends "ping" from the host and "pong" back.
async fn talk(host: &mut DuplexStream, guest: &mut Socket) {
    let mut buffer = [0; 4];
    host.write_all(b"ping").await.unwrap();
    guest.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"ping");
    guest.write_all(b"pong").await.unwrap();
    host.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"pong");
}

async fn accept(listener: &mut Listener) -> Socket {
    timeout(PATIENCE, listener.next()).await.unwrap().unwrap().unwrap()
}

async fn ends(mut guest: Socket) -> Vec<u8> {
    let mut rest = Vec::new();
    timeout(PATIENCE, guest.read_to_end(&mut rest)).await.unwrap().unwrap();
    rest
}

#[tokio::test]
async fn a_host_that_leaves_ends_its_connection_and_the_next_one_works() {
    let wire = Wire::default();
    let mut listener = listen(wire.clone()).unwrap();
    for _ in 0..3 {
        let mut host = wire.connect();
        hello(&mut host, PATIENCE).await.unwrap();
        let mut guest = accept(&mut listener).await;
        talk(&mut host, &mut guest).await;
        drop(host);
        assert_eq!(ends(guest).await, b"");
    }
    let idle = wire.0.state.lock().unwrap().idle_reads;
    assert!(idle < 20, "{idle} reads while no host was there");
}

#[tokio::test]
async fn a_connection_cut_at_any_byte_leaves_nothing_to_the_next() {
    let wire = Wire::default();
    let mut listener = listen(wire.clone()).unwrap();
    let (accepted, mut guests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(guest)) = listener.next().await {
            accepted.send(guest).unwrap();
        }
    });
    let stream = [b"\xff\0garbage".as_slice(), &HELLO, &[7; 16], b"\0\0\0\x08abcd request"].concat();
    for cut in 0..=stream.len() {
        // The host is gone and the next one there before the guest looks: it never sees the line go down.
        wire.push(&stream[..cut]);
        let mut host = wire.connect();
        hello(&mut host, PATIENCE).await.unwrap();
        host.write_all(b"ping").await.unwrap();
        // What the first host left may make connections too; each has ended, and none has read the second's ping.
        let mut guest = loop {
            let mut guest = timeout(PATIENCE, guests.recv()).await.unwrap().unwrap();
            let mut ping = [0; 4];
            match timeout(PATIENCE, guest.read_exact(&mut ping)).await.unwrap() {
                Ok(_) if &ping == b"ping" => break guest,
                Ok(_) => assert!(cut > 33, "{ping:?} of a connection cut at byte {cut}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
            }
        };
        talk(&mut host, &mut guest).await;
        drop(host);
        assert_eq!(ends(guest).await, b"");
    }
}

#[tokio::test]
async fn an_answer_half_sent_does_not_reach_the_next_host() {
    let wire = Wire::default();
    let mut listener = listen(wire.clone()).unwrap();
    let mut host = wire.connect();
    hello(&mut host, PATIENCE).await.unwrap();
    let mut guest = accept(&mut listener).await;
    guest.write_all(&vec![b'x'; 40_000]).await.unwrap(); // more than the port holds
    let mut some = [0; 10];
    host.read_exact(&mut some).await.unwrap();
    drop(host);
    let mut host = wire.connect();
    hello(&mut host, PATIENCE).await.unwrap();
    let mut guest = accept(&mut listener).await;
    talk(&mut host, &mut guest).await;
}

#[tokio::test]
async fn a_connection_that_the_server_gives_up_waits_for_the_next_hello() {
    let wire = Wire::default();
    let mut listener = listen(wire.clone()).unwrap();
    let mut host = wire.connect();
    hello(&mut host, PATIENCE).await.unwrap();
    drop(accept(&mut listener).await);
    host.write_all(b"to nobody").await.unwrap();
    hello(&mut host, PATIENCE).await.unwrap();
    let mut guest = accept(&mut listener).await;
    talk(&mut host, &mut guest).await;
}

#[tokio::test]
async fn news_of_the_last_hosts_leaving_may_come_after_the_next_ones_hello() {
    let wire = Wire::default();
    let mut listener = listen(wire.clone()).unwrap();
    let mut host = wire.connect();
    hello(&mut host, PATIENCE).await.unwrap();
    let mut guest = accept(&mut listener).await;
    // What the kernel knows goes through "nobody there" while this host is, as late news of its predecessor.
    let knows = |connected| {
        wire.0.state.lock().unwrap().connected = connected;
        wire.0.guest.notify_one();
    };
    knows(None);
    tokio::time::timeout(GONE / 5, std::future::pending::<()>()).await.unwrap_err();
    assert!(wire.0.state.lock().unwrap().idle_reads > 0, "the guest has seen it");
    knows(Some(1));
    tokio::time::timeout(2 * GONE, std::future::pending::<()>()).await.unwrap_err();
    talk(&mut host, &mut guest).await;
}
