//! Enters the container's namespaces.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::sethostname;

use crate::container::plan::{Space, Spaces};
use crate::error::{Context as _, Result};

/// In the helper, as a pid namespace holds for children only: joins it, or answers the flag with which the fork makes a new one.
pub(super) fn prepare_pid(spaces: &Spaces) -> Result<u64> {
    if let Space::Joined(path) = &spaces.pid {
        join(path, CloneFlags::CLONE_NEWPID)?;
        return Ok(0);
    }
    Ok(u64::from(libc::CLONE_NEWPID.cast_unsigned()))
}

/// In the container's process: all other namespaces.
pub(super) fn enter(spaces: &Spaces, hostname: Option<&str>) -> Result<()> {
    // Mounts and the view on cgroups are always its own.
    let mut new = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    for (space, flag) in [
        (&spaces.ipc, CloneFlags::CLONE_NEWIPC),
        (&spaces.uts, CloneFlags::CLONE_NEWUTS),
        (&spaces.net, CloneFlags::CLONE_NEWNET),
    ] {
        match space {
            Space::Shared => {}
            Space::New => new |= flag,
            Space::Joined(path) => join(path, flag)?,
        }
    }
    unshare(new).context(|| "Could not make the container's namespaces")?;
    if let Some(name) = hostname {
        sethostname(name).context(|| format!("Could not set the hostname to {name:?}"))?;
    }
    if spaces.net == Space::New {
        loopback_up().context(|| "Could not bring up the loopback interface")?;
    }
    Ok(())
}

fn join(path: &Path, kind: CloneFlags) -> Result<()> {
    let file = File::open(path).context(|| format!("Could not open namespace {}", path.display()))?;
    setns(file, kind).context(|| format!("Could not join namespace {}", path.display()))
}

fn loopback_up() -> nix::Result<()> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    // SAFETY: this request takes a pointer to an ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}
