//! A terminal of the container's own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::statfs::fstatfs;
use rustix::fs::{OFlags, fstat, makedev};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::root::Root;
use super::tree::Tree;
use crate::container::plan::Size;
use crate::error::{Context as _, Error, Kind, Result};

/// linux/magic.h
const DEVPTS: i64 = 0x1cd1;

/// Both sides of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

/// Opens a new terminal. In an exec the container may have put anything in the place of its devpts: what is opened is looked at before it
/// is used, and the slave comes from the master and not from a path.
pub(super) fn open(root: &Root, size: Size) -> Result<Terminal> {
    let master = root
        .open_existing("/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK)
        .context(|| "Could not open a terminal (/dev/pts/ptmx): does the spec mount devpts on /dev/pts?")?;
    let kind = fstatfs(&master).context(|| "Could not look at /dev/pts/ptmx")?.filesystem_type();
    let device = fstat(&master).context(|| "Could not look at /dev/pts/ptmx")?.st_rdev;
    if kind.0 != DEVPTS || device != makedev(5, 2) {
        return Err(Error::new(
            Kind::FailedPrecondition,
            "The container's /dev/pts/ptmx is not the one of a devpts",
        ));
    }
    unlockpt(&master).context(|| "Could not unlock the terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave =
        ioctl_tiocgptpeer(&master, flags).context(|| "Could not open the other side of the terminal")?;
    if size != Size::default() {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).context(|| "Could not set the terminal's size")?;
    }
    Ok(Terminal { master, slave })
}

impl Terminal {
    /// Shows it as the container's /dev/console.
    pub(super) fn place(&self, root: &Root) -> Result<()> {
        let place = || Tree::copy_of(&self.slave)?.attach(root.file("/dev/console")?);
        place().context(|| "Could not show the terminal as /dev/console")
    }

    /// Makes it the standard streams and the controlling terminal of this session.
    pub(super) fn take_over(&self) -> Result<()> {
        ioctl_tiocsctty(&self.slave).context(|| "Could not make the terminal the controlling one")?;
        nix::unistd::dup2_stdin(&self.slave)
            .and_then(|()| nix::unistd::dup2_stdout(&self.slave))
            .and_then(|()| nix::unistd::dup2_stderr(&self.slave))
            .context(|| "Could not make the terminal the standard streams")
    }

    pub(super) fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}
