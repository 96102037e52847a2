//! Checkpoint: the whole pod at one instant, into one flat directory. The containers are frozen in the guest, the VM
//! stands still while its device state is written and its RAM copied, and then runs on. Whatever fails, the guest
//! runs again or is gone, and the directory is left as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Sandbox;
use super::pod::{Machine, Pod, blocking};
use super::record;
use crate::config::DiskVolume;
use crate::error::{Error, Result};
use crate::ledger::Resource;
use crate::phases::Phases;
use crate::snapshot::{Contents, Form, Save};

/// Longest copy of the guest's RAM: 16 GiB, the default's most, at 300 MB/s.
const COPY: Duration = Duration::from_secs(60);

/// Captures the pod into `path`, which is empty or missing.
pub(super) async fn checkpoint(sandbox: &Sandbox, pod: &Arc<Pod>, path: &Path) -> Result<()> {
    let _busy = pod.busy.lock().await;
    let machine = pod.machine()?;
    if pod.config.disk_volumes() == DiskVolume::Refuse {
        record::refuse_disk_volumes(&sandbox.containers())?;
    }
    let mut phases = Phases::begin("checkpoint");
    let contents = record::contents(sandbox, pod, machine).await?;
    let into = path.to_path_buf();
    // containerd copies the directory several times and fills its holes: the packed form is the one to give it.
    let save = blocking(move || Save::begin(&into, Form::Packed)).await?;
    phases.done("record");
    // Should the shim die, `delete` takes away what it had written.
    let claim = Resource::Snapshot(path.to_path_buf());
    let written = match pod.ledger.claim(claim.clone()) {
        Ok(()) => write(pod, machine, save, contents, &mut phases).await,
        Err(error) => Err(abort(save, error).await),
    };
    let forgotten = pod.ledger.forget(&claim);
    let bytes = both(written, forgotten)?;
    phases.finish();
    log::info!("Wrote a snapshot of {bytes} bytes to {}", path.display());
    Ok(())
}

/// Writes the whole snapshot; its size in bytes.
async fn write(
    pod: &Pod,
    machine: &Machine,
    save: Save,
    contents: Contents,
    phases: &mut Phases,
) -> Result<u64> {
    let (save, state) = match frozen(machine, save, pod.ram(), phases).await {
        (save, Ok(state)) => (save, state),
        (save, Err(error)) => return Err(abort(save, error).await),
    };
    let finished = blocking(move || save.finish(contents, &state)).await?;
    phases.done("pack");
    Ok(finished.bytes)
}

/// Leaves the directory as it was; answers `error`, with what failed at that.
async fn abort(save: Save, error: Error) -> Error {
    let left = blocking(move || save.abort()).await.err();
    error.with_cleanup(left.into_iter().collect())
}

/// Freezes the containers, captures the VM, and lets all run on.
async fn frozen(
    machine: &Machine,
    save: Save,
    ram: PathBuf,
    phases: &mut Phases,
) -> (Save, Result<Vec<String>>) {
    let frozen = match machine.agent.freeze_all().await {
        Ok(frozen) => frozen,
        Err(error) => return (save, Err(error)),
    };
    phases.done("freeze");
    let (save, captured) = still(machine, save, ram, phases).await;
    let thawed = machine.agent.thaw_all(&frozen).await;
    phases.done("thaw");
    (save, both(captured, thawed))
}

/// Captures the VM while it stands still.
async fn still(
    machine: &Machine,
    save: Save,
    ram: PathBuf,
    phases: &mut Phases,
) -> (Save, Result<Vec<String>>) {
    if let Err(error) = machine.vm.pause().await {
        return (save, both(Err(error), go_on(machine).await));
    }
    phases.done("pause");
    let (save, captured) = capture(machine, save, ram, phases).await;
    let resumed = go_on(machine).await;
    phases.done("resume");
    (save, both(captured, resumed))
}

/// Lets the guest run on. One that can't is ended: it would stand still for ever, and nobody would notice.
async fn go_on(machine: &Machine) -> Result<()> {
    let Err(error) = machine.vm.resume().await else { return Ok(()) };
    log::error!("The VM can't go on and is ended: {}", error.chain());
    Err(error.with_cleanup(machine.vm.stop().await.err().into_iter().collect()))
}

async fn capture(
    machine: &Machine,
    mut save: Save,
    ram: PathBuf,
    phases: &mut Phases,
) -> (Save, Result<Vec<String>>) {
    let state = match machine.vm.save(save.dir()).await {
        Ok(state) => state,
        Err(error) => return (save, Err(error)),
    };
    phases.done("state");
    // The save comes back from the worker whatever happens, so that it can be undone.
    let copied = tokio::task::spawn_blocking(move || {
        let copied = save.capture_ram(&ram, Instant::now() + COPY);
        (save, copied)
    });
    let copied = copied.await;
    phases.done("ram");
    match copied {
        Ok((save, copied)) => (save, copied.map(|()| state)),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The first error, with the second as the cleanup that failed after it.
fn both<T>(first: Result<T>, second: Result<()>) -> Result<T> {
    match (first, second) {
        (Ok(value), Ok(())) => Ok(value),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), after) => Err(Error::with_cleanup(error, after.err().into_iter().collect())),
    }
}
