//! Messages of the Task API from and to plain types. What a client sent is checked here, and only here.

use std::path::PathBuf;
use std::time::SystemTime;

use containerd_shim_protos::api::{self, Status as WireStatus};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::{CheckpointOptions, ProcessDetails};
use oci_spec::runtime::LinuxResources;
use serde::de::DeserializeOwned;

use crate::config::Source;
use crate::error::{Context, Error, Kind, Result};
use crate::task::{Create, Deleted, Exec, Exit, Mount, Pid, State, Stats, Status, Streams};

/// Type of the details of an exec'd process, bare as all of containerd's names.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";
/// The only checkpoint options that containerd lets through.
const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

pub(super) fn create(request: api::CreateTaskRequest) -> Result<Create> {
    required("id", &request.id)?;
    required("bundle", &request.bundle)?;
    let streams = Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    Ok(Create {
        id: request.id,
        bundle: request.bundle.into(),
        rootfs: request.rootfs.into_iter().map(mount).collect(),
        streams,
        checkpoint: request.checkpoint,
        config: Source::from_options(request.options.as_ref())?,
    })
}

fn mount(mount: api::Mount) -> Mount {
    Mount { kind: mount.type_, source: mount.source, target: mount.target, options: mount.options }
}

pub(super) fn exec(request: api::ExecProcessRequest) -> Result<Exec> {
    required("id", &request.id)?;
    required("exec_id", &request.exec_id)?;
    let process = json("spec", request.spec.as_ref())?;
    let streams = Streams {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    Ok(Exec { id: request.id, exec: request.exec_id, process, streams })
}

pub(super) fn resources(request: &api::UpdateTaskRequest) -> Result<LinuxResources> {
    json("resources", request.resources.as_ref())
}

/// Where to, and whether the task ends with it.
pub(super) fn checkpoint(request: &api::CheckpointTaskRequest) -> Result<(PathBuf, bool)> {
    required("path", &request.path)?;
    let options =
        request.options.as_ref().filter(|any| any.type_url.rsplit('/').next() == Some(CHECKPOINT_OPTIONS));
    let exit = match options {
        Some(any) => {
            let malformed = || format!("Could not read the options of type {CHECKPOINT_OPTIONS}");
            CheckpointOptions::parse_from_bytes(&any.value).kind(Kind::InvalidArgument, malformed)?.exit
        }
        None => false,
    };
    Ok((request.path.clone().into(), exit))
}

pub(super) fn size(request: &api::ResizePtyRequest) -> Result<(u16, u16)> {
    let side = |name: &str, value: u32| {
        u16::try_from(value).kind(Kind::InvalidArgument, || format!("A terminal's {name} can't be {value}"))
    };
    Ok((side("width", request.width)?, side("height", request.height)?))
}

pub(super) fn state(state: State) -> api::StateResponse {
    let status = match state.status {
        Status::Created => WireStatus::CREATED,
        Status::Running => WireStatus::RUNNING,
        Status::Pausing => WireStatus::PAUSING,
        Status::Paused => WireStatus::PAUSED,
        Status::Stopped => WireStatus::STOPPED,
    };
    api::StateResponse {
        id: state.id,
        exec_id: state.exec,
        bundle: state.bundle.to_string_lossy().into_owned(),
        pid: state.pid,
        status: status.into(),
        stdin: state.streams.stdin,
        stdout: state.streams.stdout,
        stderr: state.streams.stderr,
        terminal: state.streams.terminal,
        exit_status: state.exit.map_or(0, |exit| exit.status),
        exited_at: state.exit.map(|exit| timestamp(exit.at)).into(),
        ..Default::default()
    }
}

pub(super) fn pids(pids: Vec<Pid>) -> Result<api::PidsResponse> {
    let processes = pids.into_iter().map(process).collect::<Result<_>>()?;
    Ok(api::PidsResponse { processes, ..Default::default() })
}

fn process(pid: Pid) -> Result<api::ProcessInfo> {
    let details = |exec_id| {
        let value = ProcessDetails { exec_id, ..Default::default() }.write_to_bytes();
        let value = value.context(|| format!("Could not encode {PROCESS_DETAILS}"))?;
        Ok::<_, Error>(Any { type_url: PROCESS_DETAILS.into(), value, ..Default::default() })
    };
    let info = pid.exec.map(details).transpose()?.into();
    Ok(api::ProcessInfo { pid: pid.pid, info, ..Default::default() })
}

pub(super) fn deleted(deleted: Deleted) -> api::DeleteResponse {
    api::DeleteResponse {
        pid: deleted.pid,
        exit_status: deleted.exit.status,
        exited_at: MessageField::some(timestamp(deleted.exit.at)),
        ..Default::default()
    }
}

pub(super) fn exit(exit: Exit) -> api::WaitResponse {
    let exited_at = MessageField::some(timestamp(exit.at));
    api::WaitResponse { exit_status: exit.status, exited_at, ..Default::default() }
}

pub(super) fn stats(stats: Stats) -> api::StatsResponse {
    let any = Any { type_url: stats.type_url, value: stats.value, ..Default::default() };
    api::StatsResponse { stats: MessageField::some(any), ..Default::default() }
}

fn timestamp(time: SystemTime) -> Timestamp {
    time.into()
}

fn required(field: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, format!("The request has no {field}")));
    }
    Ok(())
}

/// The value of `any`, whatever its type is called: clients differ in that, and other runtimes ignore it too.
fn json<T: DeserializeOwned>(field: &str, any: Option<&Any>) -> Result<T> {
    let any = any.ok_or_else(|| Error::new(Kind::InvalidArgument, format!("The request has no {field}")))?;
    serde_json::from_slice(&any.value)
        .kind(Kind::InvalidArgument, || format!("Could not understand {field} of the request"))
}
