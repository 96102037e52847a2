//! The shim's log: lines in containerd's own form, written to the `log` fifo of the bundle, which containerd copies to
//! its log. Started by `bootstrap`; everybody else uses the macros of the `log` crate.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::libc;

use crate::error::{Context, Result};

/// A fifo takes so many bytes in one piece: lines of several threads never mix.
const MAX_LINE: usize = 4096;
/// Our own modules; others are heard from `warn` on.
const OWN: [&str; 2] = ["shim", "containerd_shim_microvm_v1"];

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    fifo: File,
    /// Ends each line: ` namespace=… sandbox=…`.
    fields: String,
    /// What the config says.
    configured: LevelFilter,
    /// Whether SIGUSR1 has switched to `debug`.
    toggles: AtomicUsize,
}

/// Logs to `bundle/log` from now on, panics too. Neither a slow nor an absent containerd ever holds us up: what does not
/// fit into the fifo is dropped.
///
/// # Errors
/// If there is no such fifo.
pub(crate) fn start(bundle: &Path, level: Option<LevelFilter>, namespace: &str, sandbox: &str) -> Result<()> {
    let path = bundle.join("log");
    // Both ends: writing works before containerd has opened its end, and when it comes back after a restart.
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
    let fifo = opened.context(|| format!("Could not open the log {}", path.display()))?;
    let configured = level.unwrap_or(LevelFilter::Info);
    let fields = format!(" namespace={} sandbox={} runtime=microvm", quoted(namespace), quoted(sandbox));
    let logger = LOGGER.get_or_init(|| Logger { fifo, fields, configured, toggles: AtomicUsize::new(0) });
    log::set_max_level(configured);
    // Fails only if there is a logger, which then is this one.
    let _ = log::set_logger(logger);
    std::panic::set_hook(Box::new(|panic| log::error!("Panic: {panic}")));
    Ok(())
}

/// Switches between the configured level and `debug`, and answers the level that counts now.
pub(crate) fn toggle() -> LevelFilter {
    let Some(logger) = LOGGER.get() else { return log::max_level() };
    let is_debug = logger.toggles.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
    log::set_max_level(if is_debug { LevelFilter::Debug } else { logger.configured });
    log::max_level()
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let root = metadata.target().split("::").next().unwrap_or_default();
        OWN.contains(&root) || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(SystemTime::now(), record.level(), &record.args().to_string(), &self.fields);
            // A full fifo refuses the line as a whole.
            let _ = (&self.fifo).write_all(&line);
        }
    }

    fn flush(&self) {}
}

/// `time="2026-11-25T10:00:00.000000000Z" level=info msg="…" namespace=…`, as containerd writes its own.
fn line(time: SystemTime, level: Level, text: &str, fields: &str) -> Vec<u8> {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let head = format!("time=\"{}\" level={level} msg=", rfc3339(time));
    let room = MAX_LINE.saturating_sub(head.len() + fields.len() + 1);
    let mut message = quoted(text);
    if message.len() > room {
        message = cut(text, room);
    }
    format!("{head}{message}{fields}\n").into_bytes()
}

/// As much of the text, in quotes, as fits into `room` bytes.
fn cut(text: &str, room: usize) -> String {
    const END: &str = "…\"";
    let mut message = String::from('"');
    for piece in text.chars().map(char::escape_debug) {
        if message.len() + piece.clone().map(char::len_utf8).sum::<usize>() + END.len() > room {
            break;
        }
        message.extend(piece);
    }
    message + END
}

/// The text in quotes if it needs them, so that no text can look like several fields or lines.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let mut text = format!("{year:04}-{month:02}-{day:02}T");
    let _ = write!(text, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    let _ = write!(text, ".{:09}Z", since.subsec_nanos());
    text
}

/// Year, month and day of the day so many days after 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn lines_are_in_containerds_form() {
        let time = UNIX_EPOCH + Duration::new(1_795_600_800, 5);
        let text = String::from_utf8(line(time, Level::Warn, "a \"b\"\nc", " sandbox=x")).unwrap();
        let expected =
            "time=\"2026-11-25T10:00:00.000000005Z\" level=warning msg=\"a \\\"b\\\"\\nc\" sandbox=x\n";
        assert_eq!(text, expected);
        for (days, expected) in
            [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (20_819, (2027, 1, 1))]
        {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn a_long_line_is_cut_to_what_a_fifo_takes_whole() {
        for text in ["x".repeat(10_000), "\n".repeat(10_000), "ü\"".repeat(5_000)] {
            let line = line(UNIX_EPOCH, Level::Info, &text, " sandbox=x");
            assert!(line.len() <= MAX_LINE && line.len() > MAX_LINE - 40, "{}", line.len());
            assert!(line.ends_with("…\" sandbox=x\n".as_bytes()));
        }
    }
}
