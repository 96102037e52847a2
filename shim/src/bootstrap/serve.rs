//! The server: one process that serves a sandbox from `start` until containerd asks for its end. It depends on nothing
//! of containerd's: not on its connections, and not on its process.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::flags::Flags;
use super::launch::LISTENER_FD;
use super::socket;
use crate::error::{Context, Error, Kind, Result};
use crate::events::{self, Sender};
use crate::log as logging;
use crate::sandbox::{Home, Sandbox, Served};
use crate::service::Service;

/// containerd waits three seconds for a shim to end; events that it has not taken by then are lost.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// Requests are short; what takes long runs in threads for blocking work.
const WORKERS: usize = 2;
/// Enough for the operations of all containers of a pod at once.
const BLOCKING_THREADS: usize = 16;

pub(super) fn run(flags: &Flags) -> Result<()> {
    flags.check()?;
    logging::start(&flags.bundle, flags.log_level, &flags.namespace, &flags.id)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("shim")
        .enable_all()
        .build()
        .context(|| "Could not start a runtime".into())?;
    let served = runtime.block_on(serve(flags));
    // Whatever still blocks in a thread has lost its sandbox.
    runtime.shutdown_background();
    served
}

async fn serve(flags: &Flags) -> Result<()> {
    let mut signals = Signals::new()?;
    let listener = listener()?;
    let events = Sender::start(&flags.namespace, events::containerd(&flags.ttrpc_address));
    let home = Home {
        namespace: flags.namespace.clone(),
        id: flags.id.clone(),
        containerd_address: flags.address.clone(),
        ttrpc_address: flags.ttrpc_address.clone(),
        program: "/proc/self/exe".into(),
        vmm: None,
    };
    let sandbox = Sandbox::new(home, events.clone());
    let socket = flags.socket.clone();
    // A socket that answers would make the next `start` with this id hand out a shim that is about to end.
    let leave = move || {
        if let Err(error) = socket::unlink(&socket) {
            log::error!("{}", error.chain());
        }
    };
    let leave_on_signal = leave.clone();
    let service = Service::start(listener, Arc::new(Served(sandbox.clone())), leave).await?;
    log::info!("Serving on {}", flags.socket.display());
    tokio::select! {
        () = service.ended() => log::info!("Ending: containerd asked for it"),
        name = signals.end() => {
            log::info!("Ending: {name}");
            leave_on_signal();
        }
    }
    for failure in sandbox.end().await {
        log::error!("At the end: {}", failure.chain());
    }
    if let Err(error) = events.flush(FLUSH_LIMIT).await {
        log::warn!("{error}");
    }
    service.stop().await;
    Ok(())
}

/// The listener that `start` has bound for us.
fn listener() -> Result<UnixListener> {
    let failed =
        || format!("There is no socket at fd {LISTENER_FD}: this is for `start` to run, not for people");
    // SAFETY: only looked at; if it is not open, that is what the error says.
    let fd = unsafe { BorrowedFd::borrow_raw(LISTENER_FD) };
    let mode = stat::fstat(fd).context(failed)?.st_mode;
    if mode & stat::SFlag::S_IFMT.bits() != stat::SFlag::S_IFSOCK.bits() {
        return Err(Error::new(Kind::InvalidArgument, failed()));
    }
    // No child may hold it: a socket that is open answers `start` as if we lived.
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context(failed)?;
    // SAFETY: nothing else in this process knows the descriptor, which `start` made for us.
    let listener = StdListener::from(unsafe { OwnedFd::from_raw_fd(LISTENER_FD) });
    listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)).context(failed)
}

/// SIGTERM and SIGINT end the shim in order, SIGUSR1 changes what it logs. SIGPIPE is ignored, as in every Rust program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let on = |kind| signal(kind).context(|| "Could not listen for signals".into());
        Ok(Signals {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            user: on(SignalKind::user_defined1())?,
        })
    }

    /// Waits for a signal that ends us, and answers its name.
    async fn end(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.user.recv() => log::info!("Logging at level {} now", logging::toggle()),
            }
        }
    }
}
