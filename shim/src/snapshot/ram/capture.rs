//! Copies a RAM file with its holes, as fast as the host can: the guest stands still meanwhile. Called by
//! `snapshot::save`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use nix::unistd::{Whence, lseek};

use super::workers;
use crate::error::{Error, Kind, Result};
use crate::snapshot::dir::write_error;

/// What one thread takes at a time, and how often the deadline is looked at.
const WINDOW: u64 = 4 << 20;
/// Stays in the processor's second level cache between reading and writing.
const BUFFER: usize = 256 << 10;

/// Copies the first `size` bytes of `from` to the empty file `to`; holes stay holes. Where both lie on one
/// filesystem that can share blocks, nothing is copied at all.
///
/// # Errors
/// `DeadlineExceeded` at `deadline`; `ResourceExhausted` on a full disk.
pub(in crate::snapshot) fn capture(from: &File, to: &File, size: u64, deadline: Instant) -> Result<()> {
    if clone(from, to) {
        return Ok(());
    }
    to.set_len(size)
        .map_err(|error| write_error("Could not size the copy of the guest's RAM".into(), error))?;
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    workers::run(vec![(); workers::count()], |()| {
        let mut buffer = vec![0; BUFFER];
        loop {
            let start = next.fetch_add(WINDOW, Ordering::Relaxed);
            if start >= size || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let end = size.min(start + WINDOW);
            let copied = in_time(deadline).and_then(|()| {
                copy(from, to, start, end, &mut buffer)
                    .map_err(|error| write_error("Could not copy the guest's RAM".into(), error))
            });
            if copied.is_err() {
                failed.store(true, Ordering::Relaxed);
                return copied;
            }
        }
    })?;
    Ok(())
}

fn in_time(deadline: Instant) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(Error::new(
        Kind::DeadlineExceeded,
        "Copying the guest's RAM took longer than a checkpoint may hold the guest",
    ))
}

/// Shares the blocks of `from`, if the filesystem can.
fn clone(from: &File, to: &File) -> bool {
    // SAFETY: FICLONE takes a descriptor by value and touches no memory of ours; both are open.
    unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) == 0 }
}

fn copy(from: &File, to: &File, mut at: u64, end: u64, buffer: &mut [u8]) -> io::Result<()> {
    while let Some(data) = next_data(from, at)?.filter(|data| *data < end) {
        let stop = next_hole(from, data)?.min(end);
        at = data;
        while at < stop {
            let length = usize::try_from(stop - at).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..length], at)?;
            to.write_all_at(&buffer[..length], at)?;
            at += length as u64;
        }
    }
    Ok(())
}

/// Where the next data is, from `at` on. The file's own position moves; nobody here uses it.
pub(super) fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match lseek(file, i64::try_from(at).unwrap_or(i64::MAX), Whence::SeekData) {
        Ok(data) => Ok(u64::try_from(data).ok()),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn next_hole(file: &File, at: u64) -> io::Result<u64> {
    let hole = lseek(file, i64::try_from(at).unwrap_or(i64::MAX), Whence::SeekHole)?;
    Ok(u64::try_from(hole).unwrap_or(0))
}
