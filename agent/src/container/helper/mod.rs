//! The helper: the agent's binary run once more, with one thread, to become a process of a container. It forks that process as a
//! sibling of itself (the agent reaps it), reports its pid and ends. Nothing here runs in the agent.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::panic;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::setsid;
use rustix::fs::Mode;

use super::link::{Go, HelperEnd, Job, Report};
use super::plan::{Plan, Process};
use crate::error::{Context as _, Error, Kind, Result};

mod capabilities;
mod console;
mod devices;
mod fork;
mod hide;
mod hooks;
mod launch;
mod mounts;
mod program;
mod rebind;
mod root;
mod rootfs;
mod spaces;
mod tree;

use launch::Failure;
pub(super) use rebind::rebind;
use root::Root;

/// Exit code of a helper or process-to-be that could not be set up.
const NOT_SET_UP: i32 = 128;

/// `args`: the number of the socket's descriptor, and for an exec that of the container's pidfd. The answer is an exit code.
pub(super) fn main(args: impl Iterator<Item = OsString>) -> i32 {
    // Standard error is the container's by now: a panic tells nothing there, the closed socket tells the agent.
    panic::set_hook(Box::new(|_| {}));
    let mut descriptors = args.filter_map(|arg| arg.to_str()?.parse().ok());
    let Some(socket) = descriptors.next().and_then(inherit) else { return NOT_SET_UP };
    let agent = HelperEnd::new(socket);
    let container = descriptors.next().and_then(inherit);
    match run(&agent, container) {
        Ok(()) => 0,
        Err(failure) => {
            // If the agent is not there to be told, nobody is.
            let _ = agent.send(&Report::failed(&failure.error), None);
            failure.code
        }
    }
}

/// Takes over a descriptor of the parent by its number.
fn inherit(number: i32) -> Option<OwnedFd> {
    if number <= 2 {
        return None;
    }
    // SAFETY: fcntl alone looks at it, and answers EBADF if it is not open.
    fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD).ok()?;
    // SAFETY: it is open, was inherited for this purpose, and nothing else in this new process knows of it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// In the helper it ends well after the fork; in the forked process it only ends on failure.
fn run(agent: &HelperEnd, container: Option<OwnedFd>) -> Result<(), Failure> {
    become_blank()?;
    match agent.receive()? {
        Job::Create { plan, cgroup } => {
            set_oom_score(&plan.process)?;
            let flags = spaces::prepare_pid(&plan.spaces)?;
            match fork::sibling(flags, &open_cgroup(&cgroup)?)? {
                Some(pid) => Ok(agent.send(&Report::Forked(pid), None)?),
                None => create(agent, &plan),
            }
        }
        Job::Exec { process, cgroup } => {
            let container =
                container.ok_or_else(|| Error::new(Kind::Internal, "The helper was given no container"))?;
            set_oom_score(&process)?;
            let cgroup = open_cgroup(&cgroup)?;
            let all = CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWNET;
            setns(&container, all).context(|| "Could not join the container's namespaces")?;
            match fork::sibling(0, &cgroup)? {
                Some(pid) => Ok(agent.send(&Report::Forked(pid), None)?),
                None => {
                    // Not before the fork: under nsdelegate nobody enters a cgroup from outside his cgroup namespace.
                    setns(&container, CloneFlags::CLONE_NEWCGROUP)
                        .context(|| "Could not join the container's cgroup namespace")?;
                    drop((container, cgroup));
                    exec(agent, &process)
                }
            }
        }
    }
}

/// The first process of a container, in the agent's namespaces still, but for the pid namespace.
fn create(agent: &HelperEnd, plan: &Plan) -> Result<(), Failure> {
    spaces::enter(&plan.spaces, plan.hostname.as_deref())?;
    let root = rootfs::build(plan)?;
    let terminal = plan.process.terminal.map(|size| console::open(&root, size)).transpose()?;
    if let Some(terminal) = &terminal {
        terminal.place(&root)?;
    }
    rootfs::finish(plan, root)?;
    begin_session(agent, terminal)?;
    join_keyring(&plan.id);
    agent.send(&Report::Ready, None)?;
    agent.receive::<Go>()?;
    hooks::run_all(&plan.start_hooks, plan, "created")?;
    launch::run(&plan.process)
}

/// One more process, in the container already.
fn exec(agent: &HelperEnd, process: &Process) -> Result<(), Failure> {
    let root = Root::open(Path::new("/")).context(|| "Could not open the container's root")?;
    let terminal = process.terminal.map(|size| console::open(&root, size)).transpose()?;
    drop(root);
    begin_session(agent, terminal)?;
    launch::run(process)
}

fn begin_session(agent: &HelperEnd, terminal: Option<console::Terminal>) -> Result<()> {
    setsid().context(|| "Could not begin a session")?;
    let Some(terminal) = terminal else { return Ok(()) };
    terminal.take_over()?;
    agent.send(&Report::Terminal, Some(terminal.master()))
}

/// Nothing of the agent's set-up shows: signals are as a process expects them, and others can't look into this one before its program
/// runs (it is in the container's pid namespace before that).
fn become_blank() -> Result<()> {
    fork::reset_signals();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .context(|| "Could not unblock signals")?;
    nix::sys::prctl::set_dumpable(false).context(|| "Could not close the helper to tracing")?;
    rustix::process::umask(Mode::empty());
    close_on_exec()
}

/// All but the standard streams.
fn close_on_exec() -> Result<()> {
    // SAFETY: close_range takes no pointers, and with this flag it closes nothing now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop).context(|| "Could not mark descriptors close-on-exec")
}

/// The forked process inherits it; 0 is written too, as the agent's own may be another.
fn set_oom_score(process: &Process) -> Result<()> {
    fs::write("/proc/self/oom_score_adj", process.oom_score_adj.to_string())
        .context(|| format!("Could not set oomScoreAdj to {}", process.oom_score_adj))
}

fn open_cgroup(path: &Path) -> Result<OwnedFd> {
    let file = fs::File::open(path).context(|| format!("Could not open cgroup {}", path.display()))?;
    Ok(file.into())
}

/// A keyring of its own, so that a container does not see the agent's keys. Kernels without keys have none to see.
fn join_keyring(id: &str) {
    let Ok(name) = std::ffi::CString::new(format!("_ses.{id}")) else { return };
    // SAFETY: the name is a C string that outlives the call.
    unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
}
