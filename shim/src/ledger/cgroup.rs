//! Empties and removes a host cgroup, on the unified hierarchy and on the older ones. Called by the ledger only.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// How long killed processes may take to leave their cgroup.
const DEADLINE: Duration = Duration::from_secs(2);
/// The older hierarchies announce no change, so emptiness can only be tried again.
const RETRY: Duration = Duration::from_millis(10);

/// Kills everything in the cgroup `path` and below, and removes it. Success if it is not there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match try_remove(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() != Some(Errno::EBUSY as i32) => return Err(error),
            Err(error) if Instant::now() > deadline => {
                let rest = processes(path).unwrap_or_default();
                return Err(io::Error::new(
                    error.kind(),
                    format!("processes {rest:?} do not leave it: {error}"),
                ));
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

fn try_remove(path: &Path) -> io::Result<()> {
    let Some(children) = absent_is_none(children(path))? else { return Ok(()) };
    kill_all(path)?;
    for child in children {
        try_remove(&child)?;
    }
    absent_is_none(fs::remove_dir(path)).map(drop)
}

/// `cgroup.kill` also catches what forks at the moment; it is there since Linux 5.14 on the unified hierarchy.
fn kill_all(path: &Path) -> io::Result<()> {
    let kill = OpenOptions::new().write(true).open(path.join("cgroup.kill"));
    if kill.and_then(|mut kill| kill.write_all(b"1")).is_ok() {
        return Ok(());
    }
    for pid in absent_is_none(processes(path))?.unwrap_or_default() {
        // Gone between reading and signalling is what we want.
        let _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

/// Processes of the cgroup itself, never 0 (one of a foreign pid namespace) or 1.
fn processes(path: &Path) -> io::Result<BTreeSet<i32>> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect())
}

fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// The kernel answers ENODEV for files of a cgroup that is being removed.
fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(code) if code == Errno::ENOENT as i32 || code == Errno::ENODEV as i32) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
