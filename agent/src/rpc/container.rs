//! The calls of `grpc.AgentService` that are about one container or process.

use agent_proto::agent::{
    ExecProcessRequest, ReadStreamRequest, ReadStreamResponse, StatsContainerResponse, TtyWinResizeRequest,
    WriteStreamRequest, WriteStreamResponse,
};
use protobuf::MessageField;

use super::Parts;
use crate::error::{Error, Kind, Result};

pub(super) async fn exec(parts: &Parts, request: ExecProcessRequest) -> Result<()> {
    let container = parts.sandbox.container(&request.container_id)?;
    let none = || Error::new(Kind::InvalidArgument, "The request holds no process");
    let process = request.process.into_option().ok_or_else(none)?;
    container.exec(&request.exec_id, process).await
}

/// An empty write is kata's way to close the stream.
pub(super) async fn write(parts: &Parts, request: WriteStreamRequest) -> Result<WriteStreamResponse> {
    let container = parts.sandbox.container(&request.container_id)?;
    if request.data.is_empty() {
        container.close_stdin(&request.exec_id)?;
    } else {
        container.write_stdin(&request.exec_id, &request.data).await?;
    }
    let len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
    Ok(WriteStreamResponse { len, ..Default::default() })
}

/// Which of a process's output streams.
#[derive(Debug, Clone, Copy)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

pub(super) async fn read(
    parts: &Parts,
    output: Output,
    request: ReadStreamRequest,
) -> Result<ReadStreamResponse> {
    let container = parts.sandbox.container(&request.container_id)?;
    let len = usize::try_from(request.len).unwrap_or(usize::MAX);
    let data = match output {
        Output::Stdout => container.read_stdout(&request.exec_id, len).await?,
        Output::Stderr => container.read_stderr(&request.exec_id, len).await?,
    };
    Ok(ReadStreamResponse { data, ..Default::default() })
}

pub(super) fn resize(parts: &Parts, request: &TtyWinResizeRequest) -> Result<()> {
    let wrong = |_| {
        let text = format!("A terminal cannot have {} rows and {} columns", request.row, request.column);
        Error::new(Kind::InvalidArgument, text)
    };
    let rows = u16::try_from(request.row).map_err(wrong)?;
    let columns = u16::try_from(request.column).map_err(wrong)?;
    parts.sandbox.container(&request.container_id)?.resize(&request.exec_id, rows, columns)
}

pub(super) fn signal(parts: &Parts, container: &str, exec: &str, signal: u32) -> Result<()> {
    let wrong = |_| Error::new(Kind::InvalidArgument, format!("There is no signal {signal}"));
    let signal = i32::try_from(signal).map_err(wrong)?;
    parts.sandbox.container(container)?.signal(exec, signal)
}

/// The network's counters are the pod's: all containers share it.
pub(super) async fn stats(parts: &Parts, id: &str) -> Result<StatsContainerResponse> {
    let cgroup_stats = MessageField::some(parts.sandbox.stats(id).await?);
    let network_stats = parts.network.usage().await?;
    Ok(StatsContainerResponse { cgroup_stats, network_stats, ..Default::default() })
}
