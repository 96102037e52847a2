//! How fast bytes go out of a container, out of an exec and into one. Called by `scenarios.rs`.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::world::{BUSYBOX, Runtime, World, ctr};

/// Bytes of one measurement: a second's worth of a slow stream.
const BYTES: usize = 16 << 20;
/// Prints that many bytes, in pieces as a program would write them.
const PRINT: &str = "dd if=/dev/zero bs=65536 count=256 2>/dev/null";

/// One container, its output and that of an exec, and an exec's input.
pub(crate) fn run(world: &mut World, runtime: Runtime) -> Result<()> {
    let id = world.name("log");
    let words = ["run", "--rm", "--runtime", runtime.name(), BUSYBOX, &id, "sh", "-c", PRINT];
    let rate = receive(spawn(&words, Stdio::null())?)?;
    world.note("log", runtime, rate);

    let id = world.name("streams");
    ctr("default", &["run", "--detach", "--runtime", runtime.name(), BUSYBOX, &id, "sleep", "1000"])?;
    let measured = execs(world, runtime, &id);
    ctr("default", &["tasks", "delete", "--force", &id])?;
    ctr("default", &["containers", "delete", &id])?;
    measured
}

fn execs(world: &mut World, runtime: Runtime, id: &str) -> Result<()> {
    let words = ["tasks", "exec", "--exec-id", "out", id, "sh", "-c", PRINT];
    let rate = receive(spawn(&words, Stdio::null())?)?;
    world.note("exec-out", runtime, rate);
    // Says when it is there, so that only the transfer is timed, and what it got.
    let count = "echo ready; wc -c";
    let words = ["tasks", "exec", "--exec-id", "in", id, "sh", "-c", count];
    let rate = send(spawn(&words, Stdio::piped())?)?;
    world.note("exec-in", runtime, rate);
    Ok(())
}

fn spawn(words: &[&str], stdin: Stdio) -> Result<Child> {
    let mut command = Command::new("timeout");
    command.args(["120", "ctr"]).args(words).stdin(stdin).stdout(Stdio::piped());
    command.spawn().context("Could not run ctr")
}

/// MB/s from the first byte to the last.
fn receive(mut child: Child) -> Result<f64> {
    let mut stdout = child.stdout.take().context("ctr has no output")?;
    let mut piece = vec![0; 1 << 20];
    let mut received = stdout.read(&mut piece)?;
    let (begun, first) = (Instant::now(), received);
    while let count @ 1.. = stdout.read(&mut piece)? {
        received += count;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let status = child.wait()?;
    ensure!(status.success(), "ctr ended with {status}");
    // Of what a container prints just before it ends, ctr and runc lose the last piece at times.
    ensure!(received > BYTES / 100 * 99, "{received} bytes of {BYTES} have arrived");
    Ok((received - first) as f64 / 1e6 / seconds)
}

/// MB/s from when the other end is ready until it has counted everything.
fn send(mut child: Child) -> Result<f64> {
    let mut stdout = child.stdout.take().context("ctr has no output")?;
    let mut stdin = child.stdin.take().context("ctr has no input")?;
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).context("The exec did not say that it is ready")?;
    let begun = Instant::now();
    let piece = vec![0; 1 << 16];
    for _ in 0..BYTES / piece.len() {
        stdin.write_all(&piece)?;
    }
    drop(stdin);
    let mut answer = String::new();
    stdout.read_to_string(&mut answer)?;
    let seconds = begun.elapsed().as_secs_f64();
    let status = child.wait()?;
    ensure!(status.success(), "ctr ended with {status}");
    ensure!(answer.trim() == BYTES.to_string(), "{answer:?} bytes of {BYTES} have arrived");
    Ok(BYTES as f64 / 1e6 / seconds)
}
