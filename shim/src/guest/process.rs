//! Calls about one process in the guest: a container's first one (empty exec id) or an exec. Called by
//! `container` and `stdio`.

use agent_proto::agent::{
    CloseStdinRequest, ExecProcessRequest, ReadStreamRequest, SignalProcessRequest, TtyWinResizeRequest,
    WaitProcessRequest, WriteStreamRequest,
};
use agent_proto::oci;
use agent_proto::serial::unambiguous_len;
use ttrpc::context::Context;

use super::{Agent, failure};
use crate::error::Result;

/// Exit status of a process whose agent names none that exists.
const UNKNOWN_STATUS: u32 = 255;

/// "container "a"" or "exec "b" in container "a"", for error texts.
fn named(container: &str, exec: &str) -> String {
    match exec {
        "" => format!("container {container:?}"),
        exec => format!("exec {exec:?} in container {container:?}"),
    }
}

impl Agent {
    /// Runs one more process in a container; it runs when the call returns.
    ///
    /// # Errors
    /// As every call.
    pub async fn exec_process(&self, container: &str, exec: &str, process: oci::Process) -> Result<()> {
        let request = ExecProcessRequest {
            container_id: container.into(),
            exec_id: exec.into(),
            process: Some(process).into(),
            ..Default::default()
        };
        let what = format!("start {}", named(container, exec));
        self.ask(&what, self.rpc.exec_process(self.context(), &request)).await.map(drop)
    }

    /// Sends a signal, unchanged. SIGKILL to a container's first process reaches all its processes.
    ///
    /// # Errors
    /// As every call; `NotFound` if the process has ended.
    pub async fn signal_process(&self, container: &str, exec: &str, signal: u32) -> Result<()> {
        let request = SignalProcessRequest {
            container_id: container.into(),
            exec_id: exec.into(),
            signal,
            ..Default::default()
        };
        let what = format!("send signal {signal} to {}", named(container, exec));
        self.ask(&what, self.rpc.signal_process(self.context(), &request)).await.map(drop)
    }

    /// Waits without deadline for the end of a process and answers its exit status (128 + signal number if one
    /// ended it; 255 if the guest names no status that exists).
    ///
    /// # Errors
    /// As every call without a deadline.
    pub async fn wait_process(&self, container: &str, exec: &str) -> Result<u32> {
        let request =
            WaitProcessRequest { container_id: container.into(), exec_id: exec.into(), ..Default::default() };
        let what = format!("wait for {}", named(container, exec));
        let answer = self.wait(&what, self.rpc.wait_process(Context::default(), &request)).await?;
        Ok(u32::try_from(answer.status).ok().filter(|status| *status <= 255).unwrap_or(UNKNOWN_STATUS))
    }

    /// Waits without deadline for output and answers 1 to `most` bytes of it; none at the end of the stream. Of a
    /// process with a terminal this is all output.
    ///
    /// # Errors
    /// As every call without a deadline; stock kata agents answer an error at the end of the stream.
    pub async fn read_stdout(&self, container: &str, exec: &str, most: u32) -> Result<Vec<u8>> {
        let what = format!("read the stdout of {}", named(container, exec));
        let request = read_request(container, exec, most);
        let answer = self.wait(&what, self.rpc.read_stdout(Context::default(), &request)).await?;
        within(&what, answer.data, most)
    }

    /// As [`Agent::read_stdout`], for stderr of a process without a terminal.
    ///
    /// # Errors
    /// As [`Agent::read_stdout`].
    pub async fn read_stderr(&self, container: &str, exec: &str, most: u32) -> Result<Vec<u8>> {
        let what = format!("read the stderr of {}", named(container, exec));
        let request = read_request(container, exec, most);
        let answer = self.wait(&what, self.rpc.read_stderr(Context::default(), &request)).await?;
        within(&what, answer.data, most)
    }

    /// Writes to a process and answers how many bytes it took; not all of them where `data` could be mistaken for the
    /// start of a connection. No deadline: the call waits while the process does not read, which may be for ever.
    ///
    /// # Errors
    /// As every call without a deadline.
    pub async fn write_stdin(&self, container: &str, exec: &str, mut data: Vec<u8>) -> Result<usize> {
        data.truncate(unambiguous_len(&data));
        let length = data.len();
        let request = WriteStreamRequest {
            container_id: container.into(),
            exec_id: exec.into(),
            data,
            ..Default::default()
        };
        let what = format!("write to the stdin of {}", named(container, exec));
        let answer = self.wait(&what, self.rpc.write_stdin(Context::default(), &request)).await?;
        match usize::try_from(answer.len) {
            Ok(written) if written <= length => Ok(written),
            _ => Err(failure::nonsense(&what, &format!("took {} of {length} bytes", answer.len))),
        }
    }

    /// Lets the process read the end of its stdin.
    ///
    /// # Errors
    /// As every call.
    pub async fn close_stdin(&self, container: &str, exec: &str) -> Result<()> {
        let request =
            CloseStdinRequest { container_id: container.into(), exec_id: exec.into(), ..Default::default() };
        let what = format!("close the stdin of {}", named(container, exec));
        self.ask(&what, self.rpc.close_stdin(self.context(), &request)).await.map(drop)
    }

    /// Sets the size of a process's terminal in characters.
    ///
    /// # Errors
    /// As every call.
    pub async fn resize(&self, container: &str, exec: &str, width: u32, height: u32) -> Result<()> {
        let request = TtyWinResizeRequest {
            container_id: container.into(),
            exec_id: exec.into(),
            row: height,
            column: width,
            ..Default::default()
        };
        let what = format!("resize the terminal of {}", named(container, exec));
        self.ask(&what, self.rpc.tty_win_resize(self.context(), &request)).await.map(drop)
    }
}

fn read_request(container: &str, exec: &str, len: u32) -> ReadStreamRequest {
    ReadStreamRequest { container_id: container.into(), exec_id: exec.into(), len, ..Default::default() }
}

/// `data`, unless it is more than was asked for.
pub(super) fn within(what: &str, data: Vec<u8>, most: u32) -> Result<Vec<u8>> {
    if usize::try_from(most).is_ok_and(|most| data.len() <= most) {
        return Ok(data);
    }
    Err(failure::nonsense(what, &format!("{} bytes instead of at most {most}", data.len())))
}
