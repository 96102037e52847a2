//! The agent's log: lines on the kernel's console, which the host keeps.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use log::{LevelFilter, Log, Metadata, Record};
use nix::libc;

use crate::error::{Context as _, Result};

#[derive(Debug)]
struct Console(File);

/// Sends what is logged from here on to `/dev/console`.
pub(super) fn start(level: LevelFilter) -> Result<()> {
    let console = OpenOptions::new()
        .write(true)
        // A console that nobody drains must not stop PID 1: a line is lost then.
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open("/dev/console")
        .context(|| "Could not open /dev/console")?;
    // Only a second call could fail; main makes one.
    if log::set_boxed_logger(Box::new(Console(console))).is_ok() {
        log::set_max_level(level);
    }
    std::panic::set_hook(Box::new(|panic| log::error!("The agent has a bug: {panic}")));
    Ok(())
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Netlink and ttrpc log each message; only their troubles are of interest here.
        let target = metadata.target();
        target.starts_with("agent")
            || target.starts_with("microvm_agent")
            || metadata.level() <= LevelFilter::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write a line, so that lines of several threads do not mix.
            let line = format!("agent {}: {}\n", record.level().as_str().to_lowercase(), record.args());
            _ = (&self.0).write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
