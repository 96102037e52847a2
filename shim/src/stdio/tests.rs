//! Tests of `stdio` that need no VM.

use super::*;

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(10);
const LABEL: Label<'static> = Label { namespace: "ns", container: "c1" };

/// A process whose outputs are scripts and whose stdin is recorded.
#[derive(Debug, Default)]
struct Script {
    stdout: Mutex<VecDeque<Vec<u8>>>,
    stderr: Mutex<VecDeque<Vec<u8>>>,
    stdin: Mutex<Vec<u8>>,
    stdin_ended: Notify,
    /// Bytes that one write takes.
    appetite: usize,
}

impl Script {
    fn new(stdout: &[&[u8]], stderr: &[&[u8]]) -> Arc<Self> {
        let queue = |parts: &[&[u8]]| Mutex::new(parts.iter().map(|part| part.to_vec()).collect());
        Arc::new(Script { stdout: queue(stdout), stderr: queue(stderr), appetite: 3, ..Script::default() })
    }
}

#[async_trait]
impl Remote for Script {
    async fn read(&self, output: Output, most: u32) -> Result<Vec<u8>> {
        let script = if output == Output::Stdout { &self.stdout } else { &self.stderr };
        let part = script.lock().unwrap().pop_front().unwrap_or_default();
        assert!(part.len() <= most as usize);
        Ok(part)
    }

    async fn write(&self, data: Vec<u8>) -> Result<usize> {
        let count = data.len().min(self.appetite);
        self.stdin.lock().unwrap().extend_from_slice(&data[..count]);
        Ok(count)
    }

    async fn close_stdin(&self) -> Result<()> {
        self.stdin_ended.notify_one();
        Ok(())
    }
}

struct Fifos {
    dir: TempDir,
}

impl Fifos {
    fn new() -> Self {
        let fifos = Fifos { dir: tempfile::tempdir().unwrap() };
        for name in ["stdin", "stdout", "stderr"] {
            mkfifo(&fifos.path(name), Mode::from_bits_truncate(0o700)).unwrap();
        }
        fifos
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn streams(&self) -> Streams {
        let text = |name| self.path(name).to_str().unwrap().to_owned();
        Streams { stdin: text("stdin"), stdout: text("stdout"), stderr: text("stderr"), terminal: false }
    }

    /// Opens the reading end as containerd does, without waiting for a writer.
    fn reader(&self, name: &str) -> fs::File {
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.path(name)).unwrap()
    }

    /// Everything up to the end. Opened before this returns, so call it once there is a writer.
    fn read_to_end(&self, name: &str) -> JoinHandle<Vec<u8>> {
        let mut fifo = pipe::OpenOptions::new().open_receiver(self.path(name)).unwrap();
        tokio::spawn(async move {
            let mut data = Vec::new();
            timeout(LIMIT, fifo.read_to_end(&mut data)).await.unwrap().unwrap();
            data
        })
    }
}

#[tokio::test]
async fn outputs_arrive_whole_and_end() {
    let fifos = Fifos::new();
    let large = vec![b'x'; 32 * 1024];
    let script = Script::new(&[b"one ", &large, &large, &large, b" end"], &[b"error"]);
    let stdio = Stdio::open(&fifos.streams(), LABEL).await.unwrap();
    let (stdout, stderr) = (fifos.read_to_end("stdout"), fifos.read_to_end("stderr"));
    stdio.connect_to(script);
    stdio.drain(LIMIT).await.unwrap();
    let stdout = stdout.await.unwrap();
    assert_eq!(stdout.len(), 4 + 3 * large.len() + 4);
    assert!(stdout.starts_with(b"one xxx") && stdout.ends_with(b"xxx end"));
    assert_eq!(stderr.await.unwrap(), b"error");
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_only_its_own_stream() {
    let fifos = Fifos::new();
    let chunk = vec![b'x'; 32 * 1024];
    let script = Script::new(&[&chunk[..]; 8], &[b"error"]);
    let stdio = Stdio::open(&fifos.streams(), LABEL).await.unwrap();
    let _stuck = fifos.reader("stdout");
    let stderr = fifos.read_to_end("stderr");
    stdio.connect_to(script.clone());
    assert_eq!(stderr.await.unwrap(), b"error");
    // Two parts fill the fifo, the third is on the way.
    assert!(script.stdout.lock().unwrap().len() >= 5);
    let error = stdio.drain(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
}

#[tokio::test]
async fn containerd_may_go_and_come_back() {
    let fifos = Fifos::new();
    let script = Script::new(&[b"one", b"two"], &[]);
    let stdio = Stdio::open(&fifos.streams(), LABEL).await.unwrap();
    drop(fifos.reader("stdout"));
    // Its writing end of stdin goes too, and that is not the end of stdin.
    let write = || OpenOptions::new().write(true).open(fifos.path("stdin")).unwrap();
    write().write_all(b"a").unwrap();
    stdio.connect_to(script.clone());
    write().write_all(b"b").unwrap();
    let stdout = fifos.read_to_end("stdout");
    write().write_all(b"c").unwrap();
    stdio.close_stdin();
    stdio.close_stdin();
    script.stdin_ended.notified().await;
    assert_eq!(script.stdin.lock().unwrap().as_slice(), b"abc");
    stdio.drain(LIMIT).await.unwrap();
    assert_eq!(stdout.await.unwrap(), b"onetwo");
}

#[tokio::test]
async fn stdin_ends_after_everything_written_before() {
    let fifos = Fifos::new();
    let script = Script::new(&[], &[]);
    let stdio = Stdio::open(&fifos.streams(), LABEL).await.unwrap();
    let mut writer = OpenOptions::new().write(true).open(fifos.path("stdin")).unwrap();
    writer.write_all(b"0123456789").unwrap();
    stdio.close_stdin();
    writer.write_all(b" and more").unwrap();
    drop(writer);
    stdio.connect_to(script.clone());
    script.stdin_ended.notified().await;
    assert_eq!(script.stdin.lock().unwrap().as_slice(), b"0123456789 and more");
}

#[tokio::test]
async fn a_process_without_stdin_reads_its_end_unless_it_has_a_terminal() {
    let script = Script::new(&[], &[]);
    let stdio = Stdio::open(&Streams::default(), LABEL).await.unwrap();
    stdio.connect_to(script.clone());
    script.stdin_ended.notified().await;
    stdio.drain(LIMIT).await.unwrap();

    let fifos = Fifos::new();
    let streams = Streams { stdin: String::new(), terminal: true, ..fifos.streams() };
    let stdio = Stdio::open(&streams, LABEL).await.unwrap();
    let stdout = fifos.read_to_end("stdout");
    let script = Script::new(&[b"tty"], &[b"never read"]);
    stdio.connect_to(script.clone());
    stdio.drain(LIMIT).await.unwrap();
    assert_eq!(stdout.await.unwrap(), b"tty");
    assert_eq!(script.stderr.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_file_is_made_and_appended_to_by_both_streams() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("logs/c1.log");
    let uri = format!("file://{}", path.display());
    for _ in 0..2 {
        let streams = Streams { stdout: uri.clone(), stderr: uri.clone(), ..Streams::default() };
        let stdio = Stdio::open(&streams, LABEL).await.unwrap();
        stdio.connect_to(Script::new(&[b"o"], &[b"e"]));
        stdio.drain(LIMIT).await.unwrap();
    }
    let mut text = fs::read(&path).unwrap();
    text.sort_unstable();
    assert_eq!(text, b"eeoo");
}

fn program(dir: &Path, script: &str) -> Streams {
    let path = dir.join("logger");
    fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?out={}", path.display(), dir.join("log").display());
    Streams { stdout: uri.clone(), stderr: uri, ..Streams::default() }
}

#[tokio::test]
async fn a_logging_program_gets_both_streams_to_their_ends() {
    let temp = tempfile::tempdir().unwrap();
    let script =
        "exec 5>&-; { echo $1 $CONTAINER_NAMESPACE $CONTAINER_ID; cat <&3; cat <&4; } >$2; mv $2 $2.done";
    let stdio = Stdio::open(&program(temp.path(), script), LABEL).await.unwrap();
    stdio.connect_to(Script::new(&[b"output\n"], &[b"error\n"]));
    stdio.drain(LIMIT).await.unwrap();
    let log = temp.path().join("log.done");
    let written = async {
        while !log.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, written).await.unwrap();
    assert_eq!(fs::read_to_string(log).unwrap(), "out ns c1\noutput\nerror\n");
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let fifos = Fifos::new();
    for (streams, kind) in [
        (Streams { stdout: "/nonexistent/out".into(), ..Streams::default() }, Kind::Internal),
        (Streams { stdin: "/nonexistent/in".into(), ..fifos.streams() }, Kind::Internal),
        (Streams { stdout: "binary:///nonexistent/logger".into(), ..Streams::default() }, Kind::Internal),
        (Streams { stdout: "https://nonexistent/".into(), ..Streams::default() }, Kind::InvalidArgument),
    ] {
        let error = Stdio::open(&streams, LABEL).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains("nonexistent"), "{error}");
    }
}

#[tokio::test]
async fn closing_gives_the_fifos_back_at_once() {
    let fifos = Fifos::new();
    let stdio = Stdio::open(&fifos.streams(), LABEL).await.unwrap();
    let mut reader = fifos.reader("stdout");
    stdio.close();
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}
