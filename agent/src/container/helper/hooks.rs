//! Runs hooks, one after the other, each with a deadline.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::fd::AsFd;
use rustix::fs::Mode;
use rustix::process::{Pid, PidfdFlags, pidfd_open, umask};
use serde_json::json;

use crate::container::plan::{Hook, Plan};
use crate::error::{Context as _, Error, Kind, Result};

/// How much of a hook's complaint is told.
const COMPLAINT: u64 = 1024;

/// Each gets the container's state on its standard input. The first that fails ends it.
pub(super) fn run_all(hooks: &[Hook], plan: &Plan, status: &str) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = json!({
        "ociVersion": "1.2.0",
        "id": plan.id,
        "status": status,
        "pid": std::process::id(),
        "bundle": plan.root.parent(),
        "annotations": plan.annotations,
    });
    // The set-up makes files with exact modes; programs expect the usual mask.
    let before = umask(Mode::from_raw_mode(0o022));
    let done = hooks.iter().try_for_each(|hook| run(hook, state.to_string().as_bytes()));
    umask(before);
    done
}

fn run(hook: &Hook, state: &[u8]) -> Result<()> {
    let failed = || format!("Could not run hook {}", hook.path);
    // Files in memory instead of pipes: a hook that does not read or that writes a lot can't block this process.
    let mut input = memory_file().context(failed)?;
    input.write_all(state).and_then(|()| input.rewind()).context(failed)?;
    let mut complaint = memory_file().context(failed)?;
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().map(|(name, value)| (name, value))).process_group(0);
    command.stdin(input).stdout(Stdio::null()).stderr(complaint.try_clone().context(failed)?);
    let mut child = command.spawn().context(failed)?;
    let status = wait(&mut child, Duration::from_secs(hook.deadline)).context(failed)?;
    let mut text = String::new();
    let told = complaint.rewind().and_then(|()| (&complaint).take(COMPLAINT).read_to_string(&mut text));
    let text = if told.is_ok() { text.trim() } else { "" };
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            Err(Error::new(Kind::Internal, format!("Hook {} failed ({status}): {text}", hook.path)))
        }
        None => {
            let message = format!("Hook {} did not end within {} s: {text}", hook.path, hook.deadline);
            Err(Error::new(Kind::DeadlineExceeded, message))
        }
    }
}

/// `None` if it had to be killed, its process group with it.
fn wait(child: &mut Child, deadline: Duration) -> std::io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::ESRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
    let ended = poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout)?;
    if ended == 0 {
        rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)?;
        child.wait()?;
        return Ok(None);
    }
    child.wait().map(Some)
}

fn memory_file() -> nix::Result<File> {
    memfd_create("hook", MFdFlags::MFD_CLOEXEC).map(File::from)
}
