//! Runs a helper and follows its reports. `create` and `exec` use it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use log::warn;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::time::timeout;

use super::link::{AgentEnd, Job, Report};
use super::{HELPER, Runtime};
use crate::error::{Context as _, Error, Kind, Result};
use crate::reaper::{Child, ExitStatus, Window};
use crate::stdio::ProcessEnds;

/// How long a killed process may take to be gone.
pub(super) const LAST_WAIT: Duration = Duration::from_secs(5);

/// A helper and the process that it makes.
#[derive(Debug)]
pub(super) struct Spawned {
    helper: Child,
    window: Window,
    link: AgentEnd,
    child: Option<Child>,
    terminal: Option<OwnedFd>,
}

/// The process that a helper has made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) child: Child,
    /// The master, if a terminal was asked for.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) link: AgentEnd,
}

impl Spawned {
    /// `ends`: the process's standard streams, /dev/null without. `container`: the pidfd of the one to exec in.
    pub(super) async fn new(
        runtime: &Runtime,
        job: &Job,
        ends: Option<ProcessEnds>,
        container: Option<OwnedFd>,
    ) -> Result<Self> {
        let (link, theirs) = AgentEnd::pair()?;
        // Open before the helper is: its child may end before its pid is told.
        let window = runtime.reaper.window();
        let mut command = Command::new(&runtime.helper);
        command.env_clear().arg(HELPER).arg(theirs.as_raw_fd().to_string());
        if let Some(pidfd) = &container {
            command.arg(pidfd.as_raw_fd().to_string());
        }
        let (stdin, stdout, stderr) = match ends {
            Some(ends) => (ends.stdin.into(), ends.stdout.into(), ends.stderr.into()),
            None => (Stdio::null(), Stdio::null(), Stdio::null()),
        };
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let inherited: Vec<OwnedFd> = std::iter::once(theirs).chain(container).collect();
        // SAFETY: between fork and exec this makes one system call per descriptor and touches no memory but its own.
        unsafe {
            command.pre_exec(move || inherited.iter().try_for_each(|fd| keep_over_exec(fd.as_fd())));
        }
        let helper = runtime.reaper.spawn(&mut command)?;
        // The agent's copies of the helper's ends go with the command: else the end of the streams would never come.
        drop(command);
        let mut spawned = Self { helper, window, link, child: None, terminal: None };
        if let Err(error) = spawned.link.send(job).await {
            spawned.abandon().await;
            return Err(error);
        }
        Ok(spawned)
    }

    /// Follows the reports until the process stands ready (`true`), or its end of the socket is closed (`false`): by execve, or by death.
    pub(super) async fn follow(&mut self) -> Result<bool> {
        let mut ready = false;
        // The two report on their own: the process may be ready before the helper has told its pid.
        while !(ready && self.forked()) {
            match self.link.receive().await? {
                Some((Report::Forked(pid), _)) => self.child = Some(self.window.register(pid)),
                Some((Report::Terminal, fd)) => self.terminal = fd,
                Some((Report::Ready, _)) => ready = true,
                Some((Report::Failed { kind, text }, _)) => return Err(Error::new(kind, text)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether there is a process.
    pub(super) fn forked(&self) -> bool {
        self.child.is_some()
    }

    /// Why the socket was closed where the process had more to say.
    pub(super) async fn silence(&self) -> Error {
        let status = match &self.child {
            Some(child) => child.wait().await,
            None => self.helper.wait().await,
        };
        let hint = match status {
            ExitStatus::Signal(libc::SIGKILL) => ": is the memory limit too small to start in?",
            ExitStatus::Signal(_) | ExitStatus::Code(_) => "",
        };
        Error::new(Kind::Internal, format!("The process ended ({status}) before it was set up{hint}"))
    }

    /// Hands over the process.
    pub(super) fn made(self) -> Result<Made> {
        let Self { child, terminal, link, .. } = self;
        let child = child.ok_or_else(|| Error::new(Kind::Internal, "The helper made no process"))?;
        Ok(Made { child, terminal, link })
    }

    /// Ends what there is, after a failure. Deadline 5 s each: one that hangs in the kernel is left to the reaper.
    pub(super) async fn abandon(self) {
        for child in std::iter::once(self.helper).chain(self.child) {
            // It may have ended by itself, which is as good.
            let _ = child.signal(libc::SIGKILL);
            if timeout(LAST_WAIT, child.wait()).await.is_err() {
                warn!("Process {} has not ended {} s after SIGKILL", child.pid(), LAST_WAIT.as_secs());
            }
        }
    }
}

fn keep_over_exec(fd: BorrowedFd<'_>) -> std::io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Waits until a process that was told to go has become its program.
pub(super) async fn follow_to_program(link: &mut AgentEnd) -> Result<()> {
    match link.receive().await.context(|| "Could not follow the start of the program")? {
        None => Ok(()),
        Some((Report::Failed { kind, text }, _)) => Err(Error::new(kind, text)),
        Some((other, _)) => {
            Err(Error::new(Kind::Internal, format!("Unexpected report while a program starts: {other:?}")))
        }
    }
}
