//! Runs a poststop hook, once. Called by the ledger only.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Poststop, process};

/// Runs `hook` to its end or its timeout. The specification lets a failing poststop hook only be logged.
pub(super) fn run(hook: &Poststop) {
    match try_run(hook) {
        Ok(status) if status.success() => {}
        Ok(status) => log::warn!("Poststop hook {} ended with {status}", hook.path.display()),
        Err(error) => log::warn!("Could not run poststop hook {}: {error}", hook.path.display()),
    }
}

fn try_run(hook: &Poststop) -> io::Result<ExitStatus> {
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(in_memory(&hook.state)?).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let ended = process::pidfd_open(child.id())
        .and_then(|pidfd| process::wait(&pidfd, Duration::from_secs(hook.timeout.into())));
    if ended.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    ended.map(|()| status)
}

/// A file, not a pipe: a hook that does not read its state must not block us.
fn in_memory(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}
