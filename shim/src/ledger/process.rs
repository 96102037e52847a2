//! Host processes by id *and* start time, so that a recycled id is never signalled. Called by the ledger, and by all
//! who claim a process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Error, Kind, Result};

/// SIGKILL acts at once unless the process hangs in the kernel.
const DEATH_DEADLINE: Duration = Duration::from_secs(2);

/// When `pid` started, in clock ticks after boot: field 22 of `/proc/<pid>/stat`.
///
/// # Errors
/// `NotFound` if there is no such process.
pub fn start_time(pid: u32) -> Result<u64> {
    stat(pid).map(|stat| stat.start_time)
}

/// Whether that very process runs; a zombie does not.
pub(super) fn is_alive(pid: u32, start_time: u64) -> bool {
    stat(pid).is_ok_and(|stat| stat.start_time == start_time && !matches!(stat.state, 'Z' | 'X'))
}

/// Kills the process that started as `pid` at `start_time` and waits until it is dead. It may stay a zombie: whoever
/// forked it has to collect it. Success if it is gone.
pub(super) fn kill(pid: u32, start_time: u64) -> io::Result<()> {
    let pidfd = match pidfd_open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        opened => opened?,
    };
    // Checked after opening: from here on the descriptor, not the number, says which process is meant.
    if !is_alive(pid, start_time) {
        return Ok(());
    }
    match send_kill(&pidfd) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => wait(&pidfd, DEATH_DEADLINE),
    }
}

/// Waits until the process is dead, `TimedOut` after `limit`.
pub(super) fn wait(pidfd: &OwnedFd, limit: Duration) -> io::Result<()> {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => {
                let text = format!("it did not end within {} s", limit.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            Ok(_) => return Ok(()),
        }
    }
}

/// A descriptor that means the process which has the id `pid` now.
pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
    // SAFETY: the system call takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send_kill(pidfd: &OwnedFd) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and a null siginfo is what kill(2) would send.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, info, 0) };
    Errno::result(sent)?;
    Ok(())
}

struct Stat {
    state: char,
    start_time: u64,
}

fn stat(pid: u32) -> Result<Stat> {
    let text = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            return Err(Error::new(Kind::NotFound, format!("There is no process {pid}")));
        }
        text => text.context(|| format!("Could not read /proc/{pid}/stat"))?,
    };
    parse(&text)
        .ok_or_else(|| Error::new(Kind::Internal, format!("Could not understand /proc/{pid}/stat: {text}")))
}

/// The name in parentheses may hold anything, spaces and parentheses too; what follows the last one is regular.
fn parse(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 3 is the state, 22 the start time.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let stat = parse(text).unwrap();
        assert_eq!((stat.state, stat.start_time), ('S', 4711));
    }

    #[test]
    fn kill_ends_the_process_and_spares_a_recycled_id() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let time = start_time(child.id()).unwrap();
        kill(child.id(), time + 1).unwrap();
        assert!(is_alive(child.id(), time));
        kill(child.id(), time).unwrap();
        assert!(!is_alive(child.id(), time));
        child.wait().unwrap();
        kill(child.id(), time).unwrap();
        assert_eq!(start_time(child.id()).unwrap_err().kind(), Kind::NotFound);
    }
}
