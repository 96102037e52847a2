//! `delete`: cleans up after a shim that is gone, from what its ledger says, or after one container whose pod lives on.
//! containerd gives it five seconds, and calls it again and again where it likes.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{self, DeleteResponse};
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use nix::libc;

use super::bundle::{self, Bundle};
use super::flags::Flags;
use super::socket;
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Resource, Shim};

/// Leaves containerd's five seconds some room for the rest.
const LIMIT: Duration = Duration::from_millis(4500);
/// For each question to a shim that lives.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// The exit status of a task that was killed: 128 + 9.
const KILLED: u32 = 137;

/// Answers what goes to stdout. What could not be cleaned up is an error that containerd logs; it goes on with removing
/// the bundle in any case, and the next `start` with the same id tries again.
pub(super) fn delete(flags: &Flags) -> Result<Vec<u8>> {
    flags.check()?;
    let bundle =
        if flags.bundle.as_os_str().is_empty() { Bundle::current()? } else { Bundle::new(&flags.bundle) };
    let (done, result) = mpsc::channel();
    let id = flags.id.clone();
    // In a thread, because a hanging mount or process must not cost us the answer.
    std::thread::spawn(move || done.send(clean_up(&bundle, &id)));
    match result.recv_timeout(LIMIT) {
        Ok(failures) => Error::first_of(failures)?,
        Err(_) => {
            let text = format!("Container {} is not cleaned up after {} ms", flags.id, LIMIT.as_millis());
            return Err(Error::new(Kind::DeadlineExceeded, text));
        }
    }
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: MessageField::some(SystemTime::now().into()),
        ..Default::default()
    };
    response.write_to_bytes().context(|| "Could not encode the reply to containerd".into())
}

fn clean_up(bundle: &Bundle, id: &str) -> Vec<Error> {
    let mut failures = Vec::new();
    // A damaged spec must not keep anything from being removed.
    let annotations = bundle.annotations().unwrap_or_default();
    let group = bundle::group(&annotations, id);
    if group == id {
        failures.extend(end_sandbox(bundle));
    } else if let Some((socket, _)) = bundle.sibling(group).and_then(|pod| living(&pod)) {
        failures.extend(end_member(&socket, id).err());
    }
    // Of a member this is the only thing on the host that outlives both its pod and its task in the shim.
    failures.extend(Resource::Mount(bundle.path().join("rootfs")).undo().err());
    failures
}

/// Socket and process of the shim of the sandbox `pod`, if it lives.
fn living(pod: &Bundle) -> Option<(PathBuf, Shim)> {
    let shim = pod.shim().filter(Shim::is_alive)?;
    Some((pod.socket()?, shim))
}

/// Everything of a sandbox: the shim first, because it would answer the loss of its VM with work of its own.
fn end_sandbox(bundle: &Bundle) -> Vec<Error> {
    let mut failures = Vec::new();
    let ledger = bundle.ledger();
    let recorded = ledger.as_ref().ok().and_then(Option::as_ref).map(|ledger| ledger.owner().shim);
    for Shim { pid, start_time } in [bundle.shim(), recorded].into_iter().flatten() {
        let shim = Resource::Process { pid, start_time, what: "shim".into() };
        failures.extend(shim.undo().err());
    }
    match ledger {
        Ok(Some(ledger)) => failures.extend(ledger.release_all()),
        Ok(None) => {}
        Err(error) => failures.push(error),
    }
    failures.extend(bundle.socket().and_then(|socket| socket::unlink(&socket).err()));
    failures
}

/// One container of a pod that goes on: its shim knows best what belongs to it.
fn end_member(socket: &Path, id: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "Could not start a runtime".into())?;
    runtime.block_on(async {
        let address = format!("unix://{}", socket.display());
        let connected = tokio::time::timeout(ASK_LIMIT, Client::connect(&address)).await;
        let failed = || format!("Could not ask the shim at {address} to delete container {id}");
        let client = TaskClient::new(connected.kind(Kind::DeadlineExceeded, failed)?.context(failed)?);
        let limit = || ttrpc::context::with_duration(ASK_LIMIT);
        let kill = api::KillRequest {
            id: id.into(),
            signal: libc::SIGKILL.unsigned_abs(),
            all: true,
            ..Default::default()
        };
        gone_is_fine(client.kill(limit(), &kill).await).context(failed)?;
        // Deleting needs the exit, which comes a moment after the signal.
        let wait = api::WaitRequest { id: id.into(), ..Default::default() };
        gone_is_fine(client.wait(limit(), &wait).await).context(failed)?;
        let delete = api::DeleteRequest { id: id.into(), ..Default::default() };
        gone_is_fine(client.delete(limit(), &delete).await).context(failed)
    })
}

fn gone_is_fine<T>(answer: ttrpc::Result<T>) -> ttrpc::Result<()> {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => Ok(()),
        answer => answer.map(drop),
    }
}
