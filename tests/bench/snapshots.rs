//! Checkpoints and restores of pods. Called by `scenarios.rs`.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use tests::counts::wait_for_count;
use tests::cri::{Container, Pod};
use tests::programs;

use crate::memory;
use crate::world::{Runtime, World, ctr, milliseconds};

/// Names a snapshot in a pod's annotations.
const RESTORE_FROM: &str = "io.containerd.microvm.v1/restore-from";
/// Changes a pod's guest RAM.
const MEMORY: &str = "io.containerd.microvm.v1/default_memory";
/// Where the node keeps its snapshots.
const STORE: &str = "/var/lib/microvm/snapshots";
/// Where containerd is told to put a checkpoint.
const CHECKPOINT: &str = "/tmp/bench-checkpoint";
/// Name in the store.
const SNAPSHOT: &str = "bench";
const PAGE: usize = 4096;
const ZERO: [u8; PAGE] = [0; PAGE];

/// A guest of the default size: checkpoint, snapshot on disk, restore.
pub(crate) fn of_256(world: &mut World) -> Result<()> {
    checkpoint(world, 256, ("snapshot-256", "touched-256"), |world, _| {
        programs::run(Command::new("microvmctl").args(["snapshot", "import", CHECKPOINT, SNAPSHOT]))?;
        let plain = Path::new(STORE).join(SNAPSHOT);
        let pages = nonzero_pages(&plain.join("ram"))? as f64 * PAGE as f64;
        world.note("snapshot-plain", Runtime::Microvm, on_disk(&plain)? / pages);
        world.note("snapshot-packed", Runtime::Microvm, on_disk(Path::new(CHECKPOINT))? / pages);
        Ok(())
    })?;
    let restored = restore(world);
    programs::run(Command::new("microvmctl").args(["snapshot", "rm", SNAPSHOT]))?;
    restored
}

/// A guest of 1 GiB: how long it stands still.
pub(crate) fn of_1024(world: &mut World) -> Result<()> {
    checkpoint(world, 1024, ("snapshot-1024", "touched-1024"), |_, _| Ok(()))
}

/// A guest of 4 GiB: how long it stands still.
pub(crate) fn of_4096(world: &mut World) -> Result<()> {
    checkpoint(world, 4096, ("snapshot-4096", "touched-4096"), |_, _| Ok(()))
}

fn counter() -> Container {
    Container::new("counter", "localhost/counter:1")
}

/// Checkpoints a counting pod; `then` gets what was written, and the pod's id.
fn checkpoint(
    world: &mut World,
    mebibytes: u32,
    (scenario, touched): (&'static str, &'static str),
    then: impl FnOnce(&mut World, &str) -> Result<()>,
) -> Result<()> {
    let name = world.name("snapshot");
    let pod = Pod::new(&name, &name).annotation(MEMORY, &format!("{mebibytes}MiB"));
    let pod_id = world.cri.run_pod(&pod, Runtime::Microvm.handler())?;
    world.note_sandbox(&pod_id, scenario);
    let measured = (|| {
        world.cri.run(&pod_id, &pod, &counter())?;
        wait_for_count(&pod, &counter(), 3)?;
        let begun = Instant::now();
        ctr("k8s.io", &["tasks", "checkpoint", "--image-path", CHECKPOINT, &pod_id])?;
        if mebibytes == 256 {
            world.note("checkpoint", Runtime::Microvm, milliseconds(begun));
        }
        let held = memory::touched(&pod_id).context("The guest's RAM is not where it should be")?;
        world.note(touched, Runtime::Microvm, held * 1.048_576);
        then(world, &pod_id)
    })();
    if Path::new(CHECKPOINT).exists() {
        fs::remove_dir_all(CHECKPOINT)?;
    }
    world.cri.remove_pod(&pod_id)?;
    measured
}

fn restore(world: &mut World) -> Result<()> {
    let name = world.name("restored");
    let pod = Pod::new(&name, &name).annotation(RESTORE_FROM, SNAPSHOT);
    let pod_id = world.time("restore", Runtime::Microvm, |world| {
        let pod_id = world.cri.run_pod(&pod, Runtime::Microvm.handler())?;
        let id = world.cri.run(&pod_id, &pod, &counter())?;
        world.cri.read(&id, &["true"])?;
        Ok(pod_id)
    })?;
    world.note_sandbox(&pod_id, "snapshot-256");
    world.cri.remove_pod(&pod_id)
}

/// Bytes that the files of a folder take on the disk.
fn on_disk(folder: &Path) -> Result<f64> {
    let mut blocks = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("Could not read {}", folder.display()))? {
        blocks += entry?.metadata()?.blocks();
    }
    Ok(blocks as f64 * 512.0)
}

fn nonzero_pages(file: &Path) -> Result<usize> {
    let mut ram = File::open(file).with_context(|| format!("Could not open {}", file.display()))?;
    let (mut pages, mut piece) = (0, vec![0; 256 * PAGE]);
    loop {
        let count = ram.read(&mut piece)?;
        if count == 0 {
            return Ok(pages);
        }
        pages += piece[..count].chunks(PAGE).filter(|page| **page != ZERO[..page.len()]).count();
    }
}
