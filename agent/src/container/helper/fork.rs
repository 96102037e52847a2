//! System calls of the helper for which no safe wrapper exists: clone3 and the reset of signals.

use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Context as _, Result};

/// The kernel's highest signal number.
const SIGNALS: i32 = 64;

/// CLONE_INTO_CGROUP, which libc has with a type that is too narrow.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks a child of this process's parent, inside a cgroup from its first moment. `None` in the child.
///
/// The C library does not know of the fork. That is sound because this process has one thread: no lock can be held by another.
pub(super) fn sibling(flags: u64, cgroup: &OwnedFd) -> Result<Option<i32>> {
    let sibling = u64::from(libc::CLONE_PARENT.cast_unsigned());
    // SAFETY: all-zero is a valid clone_args: no stack, no pointers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | sibling | INTO_CGROUP;
    arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    // SAFETY: without CLONE_VM the child goes on with a copy of all memory, as after fork.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    let pid = Errno::result(result).context(|| "Could not fork the container's process")?;
    Ok(i32::try_from(pid).ok().filter(|&pid| pid != 0))
}

/// Every signal back to its default: the agent ignores some, and ignored ones stay ignored through execve.
pub(super) fn reset_signals() {
    // The kernel's struct sigaction: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0u64; 4];
    for signal in 1..=SIGNALS {
        // By system call, as the C library keeps signals 32 and 33 for itself. It fails for SIGKILL and SIGSTOP alone.
        // SAFETY: `default` is at least as long as the kernel's struct, with 8 bytes of mask; no old action is asked for.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            )
        };
    }
}
