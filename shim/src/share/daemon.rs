//! Starts, watches and ends one virtiofsd process. Called by `share`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time;

use super::virtiofsd::{MODE, READY, Serve};
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource, start_time};

/// A daemon is ready within milliseconds; a host that needs longer is out of order.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// SIGKILL acts at once, and the daemon behind the killed process gets a signal from the kernel.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Most bytes of a daemon's stderr that are kept: the last ones.
const LAST_WORDS: usize = 4096;

/// Where a daemon runs and listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// External program; our own binary if none.
    pub(super) program: Option<&'a Path>,
    /// Socket to listen on.
    pub(super) socket: &'a Path,
    /// Files of cgroups that the process writes itself into.
    pub(super) cgroup_procs: &'a [PathBuf],
}

/// A running daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    process: Resource,
    /// Ends when the process is reaped and its stderr closed, which the process behind it holds too.
    watch: JoinHandle<()>,
}

impl Daemon {
    /// Starts the daemon; it listens when this returns, and `death` is told when it ends.
    pub(super) async fn start(
        serve: &Serve,
        place: &Place<'_>,
        ledger: &Arc<Ledger>,
        death: watch::Sender<Option<String>>,
    ) -> Result<Self> {
        let what = format!("virtiofsd of {}", serve.tag);
        let failed = || format!("Could not start the {what}");
        let mut child = spawn(serve, place).context(failed)?;
        let stderr = child.stderr.take();
        let claimed = claim(&child, &what, ledger);
        let (ready, is_ready) = oneshot::channel();
        let watch = tokio::spawn(watch_child(child, stderr, what.clone(), ready, death));
        let process = match claimed {
            Ok(process) => process,
            // The watch holds the only handle of the child, which is killed when it is dropped.
            Err(error) => {
                watch.abort();
                return Err(error);
            }
        };
        let daemon = Daemon { process, watch };
        let error = match time::timeout(READY_DEADLINE, is_ready).await {
            Ok(Ok(Ok(()))) => return Ok(daemon),
            Ok(Ok(Err(last_words))) => Error::new(Kind::Internal, format!("{}: {last_words}", failed())),
            Ok(Err(_)) => Error::new(Kind::Internal, failed()),
            Err(_) => {
                let text = format!("{}: it did not get ready within {READY_DEADLINE:?}", failed());
                Error::new(Kind::DeadlineExceeded, text)
            }
        };
        let stopped = daemon.stop(ledger).await;
        Err(error.with_cleanup(stopped.err().into_iter().collect()))
    }

    /// Ends the daemon and waits until it is gone.
    ///
    /// Our child only waits for the process that serves, so that one is killed first: then our child collects it
    /// and ends. The other way round it would become a zombie of whoever adopts it.
    pub(super) async fn stop(mut self, ledger: &Arc<Ledger>) -> Result<()> {
        let served = kill_children(&self.process);
        let ended = served && time::timeout(STOP_DEADLINE, &mut self.watch).await.is_ok();
        let (ledger, process) = (ledger.clone(), self.process.clone());
        tokio::task::spawn_blocking(move || ledger.release(&process))
            .await
            .context(|| "Could not wait for the end of a virtiofsd".into())??;
        if ended || time::timeout(STOP_DEADLINE, self.watch).await.is_ok() {
            return Ok(());
        }
        let text = format!("{} is still there {STOP_DEADLINE:?} after SIGKILL", self.process);
        Err(Error::new(Kind::DeadlineExceeded, text))
    }
}

/// Binds and listens, so that a VMM may connect before the daemon is awake, and starts it.
fn spawn(serve: &Serve, place: &Place<'_>) -> io::Result<Child> {
    match std::fs::remove_file(place.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(place.socket)?;
    let cgroups = place
        .cgroup_procs
        .iter()
        .map(|path| OpenOptions::new().write(true).open(path))
        .collect::<io::Result<Vec<File>>>()?;
    let mut command = match place.program {
        Some(program) => Command::new(program),
        None => {
            let mut own = Command::new("/proc/self/exe");
            own.arg0(env!("CARGO_PKG_NAME")).arg(MODE);
            own
        }
    };
    let listening = listener.as_raw_fd();
    command
        .args(serve.arguments(listening))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // SAFETY: the closure makes system calls only, on descriptors that stay open until the child is spawned.
    unsafe {
        command.pre_exec(move || {
            for cgroup in &cgroups {
                // 0 is the writing process.
                rustix::io::write(cgroup, b"0")?;
            }
            pass_only(listening)
        });
    }
    let child = command.spawn();
    drop(listener);
    child
}

/// Lets the program that is about to be executed have the descriptor `kept`, the standard ones, and no other.
fn pass_only(kept: RawFd) -> io::Result<()> {
    let kept = u32::try_from(kept).map_err(|_| io::ErrorKind::InvalidInput)?;
    for (first, last, flags) in
        [(3, kept - 1, libc::CLOSE_RANGE_CLOEXEC), (kept + 1, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)]
    {
        // SAFETY: marking descriptors close-on-exec touches no memory.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let kept = i32::try_from(kept).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: clearing the flag of a descriptor touches no memory.
    if unsafe { libc::fcntl(kept, libc::F_SETFD, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn claim(child: &Child, what: &str, ledger: &Ledger) -> Result<Resource> {
    let ended = || Error::new(Kind::Internal, format!("The {what} ended at once"));
    let pid = child.id().ok_or_else(ended)?;
    let process = Resource::Process { pid, start_time: start_time(pid)?, what: what.to_owned() };
    ledger.claim(process.clone())?;
    Ok(process)
}

/// Tells that the daemon is ready, or its last words if it ends before; and at its end tells `death` about them.
async fn watch_child(
    mut child: Child,
    stderr: Option<impl AsyncRead + Unpin>,
    what: String,
    ready: oneshot::Sender<Result<(), String>>,
    death: watch::Sender<Option<String>>,
) {
    let (mut ready, mut words) = (Some(ready), Vec::new());
    if let Some(mut stderr) = stderr {
        let mut chunk = [0; 1024];
        while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
            words.extend_from_slice(chunk.get(..length).unwrap_or_default());
            if contains(&words, READY.as_bytes())
                && let Some(ready) = ready.take()
            {
                // Whoever waited may have given up.
                let _ = ready.send(Ok(()));
                words.clear();
            }
            let surplus = words.len().saturating_sub(LAST_WORDS);
            words.drain(..surplus);
        }
    }
    let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
    let said = String::from_utf8_lossy(&words).trim().escape_debug().to_string();
    let text = match said.as_str() {
        "" => format!("the {what} has ended ({status})"),
        said => format!("the {what} has ended ({status}): {said}"),
    };
    if let Some(ready) = ready {
        let _ = ready.send(Err(text));
    } else {
        // The first death is the cause of the others.
        death.send_if_modified(|first| {
            let new = first.is_none();
            first.get_or_insert(text);
            new
        });
    }
}

/// Kills the children of a process; whether it had any. Not every kernel lists them (`CONFIG_PROC_CHILDREN`), so
/// all processes are asked for their parent.
fn kill_children(process: &Resource) -> bool {
    let Resource::Process { pid: parent, .. } = process else { return false };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = pids.filter(|pid| parent_of(*pid).is_some_and(|found| found == *parent));
    children.filter(|child| kill(Pid::from_raw(*child), Signal::SIGKILL).is_ok()).count() > 0
}

/// The parent of a process, which is the second field behind its name.
fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
