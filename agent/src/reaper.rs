//! Reaps the children of this process: the containers' processes, helpers, and as PID 1 every orphan.
//! `main.rs` starts it once; `container` and whoever runs a program in the guest use it instead of waiting
//! for a pid themselves (`tokio::process` and `std::process::Child::wait` lose their child to it).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Context as _, Error, Kind, Result};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The code a shell would report: a signal counts as 128 + its number.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => 128 + number,
        }
    }
}

impl ExitStatus {
    /// Reads the status word of waitpid(2), real-time signals included (nix's own type has no name for those).
    fn from_wait(status: i32) -> Self {
        if libc::WIFEXITED(status) {
            Self::Code(libc::WEXITSTATUS(status))
        } else {
            Self::Signal(libc::WTERMSIG(status))
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(out, "exit code {code}"),
            Self::Signal(number) => write!(out, "signal {number}"),
        }
    }
}

/// The one place that waits for children. The lock is held for system calls that never block.
#[derive(Debug, Default)]
pub struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Children somebody waits for, not reaped yet: as long as a pid is here it names that child and no other.
    children: HashMap<i32, watch::Sender<Option<ExitStatus>>>,
    /// Exits of pids nobody has named yet, kept while a [`Window`] is open that began before them.
    unknown: BTreeMap<u64, (i32, ExitStatus)>,
    /// The count of exits at the moment each open window began.
    windows: Vec<u64>,
    exits: u64,
}

/// While it lives, an exit of a child not yet known is kept for [`Window::register`]. Needed where another
/// process forks our child and then tells its pid. A pid is never matched with an exit before the window.
#[derive(Debug)]
pub struct Window {
    reaper: Arc<Reaper>,
    since: u64,
}

/// A child process to be waited for.
#[derive(Debug, Clone)]
pub struct Child {
    reaper: Arc<Reaper>,
    pid: i32,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Reaper {
    /// Starts reaping in a task of the current tokio runtime.
    ///
    /// # Errors
    /// If SIGCHLD cannot be watched.
    pub fn start() -> Result<Arc<Self>> {
        let mut deaths = signal(SignalKind::child()).context(|| "Could not watch SIGCHLD")?;
        let reaper = Arc::new(Self::default());
        let weak = Arc::downgrade(&reaper);
        tokio::spawn(async move {
            while deaths.recv().await.is_some() {
                let Some(reaper) = weak.upgrade() else { return };
                reaper.reap();
            }
        });
        Ok(reaper)
    }

    /// Opens a [`Window`].
    #[must_use]
    pub fn window(self: &Arc<Self>) -> Window {
        let mut table = self.table();
        let since = table.exits;
        table.windows.push(since);
        Window { reaper: self.clone(), since }
    }

    /// Runs a program as a child; its standard streams are what `command` says.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(self: &Arc<Self>, command: &mut Command) -> Result<Child> {
        let window = self.window();
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().context(|| format!("Could not run {program}"))?;
        let pid = i32::try_from(child.id()).context(|| "A pid is larger than the kernel allows")?;
        Ok(window.register(pid))
    }

    /// Reaps all children that have ended.
    fn reap(&self) {
        loop {
            let mut table = self.table();
            let mut status = 0;
            // SAFETY: `status` outlives the call, which is told not to block.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            match Errno::result(pid) {
                Ok(0) => return,
                Ok(pid) => table.ended(pid, ExitStatus::from_wait(status)),
                Err(Errno::EINTR) => {}
                // No child at all.
                Err(_) => return,
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn ended(&mut self, pid: i32, status: ExitStatus) {
        self.exits += 1;
        if let Some(waiters) = self.children.remove(&pid) {
            waiters.send_replace(Some(status));
        } else if !self.windows.is_empty() {
            self.unknown.insert(self.exits, (pid, status));
        }
    }

    /// The exit of `pid` after the first `since` exits, if it was kept.
    fn take(&mut self, pid: i32, since: u64) -> Option<ExitStatus> {
        let (&at, _) = self.unknown.range(since + 1..).find(|(_, (known, _))| *known == pid)?;
        self.unknown.remove(&at).map(|(_, status)| status)
    }
}

impl Window {
    /// Names a child forked since the window was opened, whether or not it has ended by now.
    #[must_use]
    pub fn register(&self, pid: i32) -> Child {
        let mut table = self.reaper.table();
        let exit = match table.take(pid, self.since) {
            Some(status) => watch::Sender::new(Some(status)).subscribe(),
            None => {
                let waiters = watch::Sender::new(None);
                let exit = waiters.subscribe();
                table.children.insert(pid, waiters);
                exit
            }
        };
        drop(table);
        Child { reaper: self.reaper.clone(), pid, exit }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        if let Some(at) = table.windows.iter().position(|&since| since == self.since) {
            table.windows.swap_remove(at);
        }
        match table.windows.iter().min().copied() {
            Some(oldest) => table.unknown = table.unknown.split_off(&(oldest + 1)),
            None => table.unknown.clear(),
        }
    }
}

impl Child {
    /// Its pid in the agent's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it has ended. No deadline; any number of waiters; may be cancelled.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        loop {
            if let Some(status) = *exit.borrow_and_update() {
                return status;
            }
            if exit.changed().await.is_err() {
                // The sender goes only after it has sent; a reaper that is gone can tell no more.
                return self.exit().unwrap_or(ExitStatus::Signal(libc::SIGKILL));
            }
        }
    }

    /// A handle of the process that no later process of the same pid can take the place of.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it has ended.
    pub fn pidfd(&self) -> Result<OwnedFd> {
        let table = self.reaper.table();
        self.still_there(&table)?;
        let pid = Pid::from_raw(self.pid).ok_or_else(|| Error::new(Kind::Internal, "A child has no pid"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty());
        drop(table);
        pidfd.context(|| format!("Could not open process {}", self.pid))
    }

    fn still_there(&self, table: &Table) -> Result<()> {
        if table.children.contains_key(&self.pid) && self.exit().is_none() {
            return Ok(());
        }
        Err(Error::new(Kind::NotFound, format!("Process {} has ended already", self.pid)))
    }

    /// Sends a signal. It cannot hit another process that got the same pid later: nothing is reaped meanwhile.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the process has ended, [`Kind::InvalidArgument`] if there is no such signal.
    pub fn signal(&self, number: i32) -> Result<()> {
        let table = self.reaper.table();
        self.still_there(&table)?;
        // SAFETY: kill takes no pointers, and the pid is our child's: it is reaped only under the lock held here.
        let result = Errno::result(unsafe { libc::kill(self.pid, number) });
        drop(table);
        let kind = if result == Err(Errno::EINVAL) { Kind::InvalidArgument } else { Kind::Internal };
        result.map(drop).map_err(|error| {
            Error::caused(kind, format!("Could not send signal {number} to process {}", self.pid), error)
        })
    }
}
