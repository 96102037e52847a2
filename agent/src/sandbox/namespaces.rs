//! Namespaces that all containers of the pod share: IPC, hostname and, where the pod asks for it, pids. Each is
//! kept alive by a bind mount, so that containers may come and go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::sethostname;

use crate::error::{Context as _, Error, Kind, Result};
use crate::reaper::{Child, Reaper};
use crate::storage::unmount;

/// Where the namespaces' files are.
const HOME: &str = "/run/microvm-namespaces";
/// The first argument that makes the agent's binary the init process of the pod's pid namespace.
pub const INIT: &str = "sandbox-init";

/// The namespaces of one pod.
#[derive(Debug)]
pub struct Shared {
    /// Process 1 of the shared pid namespace.
    init: Option<Child>,
}

impl Shared {
    /// Makes them. Blocks shortly. With the agent's binary, a pid namespace too, whose init process it runs.
    ///
    /// # Errors
    /// `InvalidArgument` for a hostname the kernel refuses, else the step that failed; nothing is left of it.
    pub fn make(hostname: &str, agent: Option<&PathBuf>, reaper: &Arc<Reaper>) -> Result<Self> {
        fs::create_dir_all(HOME).context(|| format!("Could not make {HOME}"))?;
        // A thread of its own: it leaves the agent's namespaces and must not serve anything else afterwards.
        let made = thread::scope(|scope| {
            scope.spawn(|| in_new_namespaces(hostname, agent, reaper)).join().unwrap_or_else(|_| {
                Err(Error::new(Kind::Internal, "The thread that makes namespaces broke off"))
            })
        });
        if made.is_err() {
            Self { init: None }.remove();
        }
        Ok(Self { init: made? })
    }

    /// The file of the IPC namespace.
    #[must_use]
    pub fn ipc(&self) -> PathBuf {
        file("ipc")
    }

    /// The file of the namespace that holds the hostname.
    #[must_use]
    pub fn uts(&self) -> PathBuf {
        file("uts")
    }

    /// The file of the pid namespace, if there is one.
    #[must_use]
    pub fn pid(&self) -> Option<PathBuf> {
        self.init.as_ref().map(|_| file("pid"))
    }

    /// Renames the pod's host. Blocks shortly.
    ///
    /// # Errors
    /// `InvalidArgument` for a name the kernel refuses.
    pub fn set_hostname(&self, name: &str) -> Result<()> {
        let uts = File::open(self.uts()).context(|| "Could not open the pod's UTS namespace")?;
        let rename = || {
            setns(&uts, CloneFlags::CLONE_NEWUTS).context(|| "Could not enter the pod's UTS namespace")?;
            name_host(name)
        };
        let broken = |_| Err(Error::new(Kind::Internal, "The thread that names the host broke off"));
        thread::scope(|scope| scope.spawn(rename).join().unwrap_or_else(broken))
    }

    /// Ends them. What fails is logged: the guest goes on without them or ends itself.
    pub fn remove(&self) {
        if let Some(init) = &self.init {
            // It may have ended by itself.
            _ = init.signal(libc::SIGKILL);
        }
        for kind in ["ipc", "uts", "pid"] {
            if let Err(error) = unmount(&file(kind)) {
                log::warn!("{}", error.chain());
            }
        }
    }
}

fn file(kind: &str) -> PathBuf {
    Path::new(HOME).join(kind)
}

fn in_new_namespaces(hostname: &str, agent: Option<&PathBuf>, reaper: &Arc<Reaper>) -> Result<Option<Child>> {
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).context(|| "Could not make namespaces")?;
    name_host(hostname)?;
    keep("ipc", "/proc/thread-self/ns/ipc")?;
    keep("uts", "/proc/thread-self/ns/uts")?;
    let Some(agent) = agent else { return Ok(None) };
    unshare(CloneFlags::CLONE_NEWPID).context(|| "Could not make a pid namespace")?;
    let mut command = Command::new(agent);
    command.arg(INIT).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let init = reaper.spawn(&mut command)?;
    let kept = keep("pid", &format!("/proc/{}/ns/pid", init.pid()));
    if kept.is_err() {
        _ = init.signal(libc::SIGKILL);
    }
    kept.map(|()| Some(init))
}

fn name_host(name: &str) -> Result<()> {
    let name = if name.is_empty() { "localhost" } else { name };
    sethostname(name).map_err(|error| {
        Error::caused(Kind::InvalidArgument, format!("Could not set hostname {name:?}"), error)
    })
}

/// Mounts the namespace at `link` on its file.
fn keep(kind: &str, link: &str) -> Result<()> {
    let at = file(kind);
    File::create(&at).context(|| format!("Could not make {}", at.display()))?;
    let none = None::<&str>;
    mount(Some(link), &at, none, MsFlags::MS_BIND, none)
        .context(|| format!("Could not keep the {kind} namespace at {}", at.display()))
}

/// The init process of a shared pid namespace, as `main.rs` runs it: reaps orphans until it is killed.
pub fn init_main() -> i32 {
    let mut deaths = SigSet::empty();
    deaths.add(Signal::SIGCHLD);
    if deaths.thread_block().is_err() {
        return 1;
    }
    loop {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|ended| ended.pid().is_some()) {}
        if deaths.wait().is_err() {
            return 1;
        }
    }
}
