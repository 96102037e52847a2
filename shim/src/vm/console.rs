//! What a VMM and its guest print, kept within bounds: a guest may print for ever, the host keeps the first and the
//! last of it. Called by `vm::process` and the VMMs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

/// How much of the beginning is kept: a whole verbose boot.
const HEAD: u64 = 64 << 10;
/// How much of the end is kept at least; twice as much is kept at most.
const TAIL: u64 = 64 << 10;
/// What a guest may print at once; then it has to wait for [`PAUSE`]. It pays with its own time, not with ours.
const BURST: usize = 64 << 10;
/// With [`BURST`] this makes 3 MiB in a second, far more than any honest guest prints.
const PAUSE: Duration = Duration::from_millis(20);
/// How much a reader of error texts gets.
const LAST_LINES: usize = 10;
/// Longest line in an error text, in characters.
const LINE: usize = 200;

/// The guest's console as a file: the first 64 KiB, and of what came after that the last 64 to 128 KiB.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    length: u64,
    dropped: u64,
}

impl Log {
    /// Starts the file anew.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, length: 0, dropped: 0 })
    }

    /// Appends `bytes`, and drops from the middle what has become too much.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.length)?;
        self.length += bytes.len() as u64;
        if self.length > HEAD + 2 * TAIL {
            self.drop_middle()?;
        }
        Ok(())
    }

    fn drop_middle(&mut self) -> io::Result<()> {
        let mut tail = vec![0; usize::try_from(TAIL).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut tail, self.length - TAIL)?;
        self.dropped += self.length - TAIL - HEAD;
        let mark = format!("\n[about {} bytes dropped here]\n", self.dropped);
        self.file.set_len(HEAD)?;
        self.file.write_all_at(mark.as_bytes(), HEAD)?;
        self.length = HEAD + mark.len() as u64;
        self.file.write_all_at(&tail, self.length)?;
        self.length += TAIL;
        Ok(())
    }

    /// Copies `source` into the file until it ends. What can't be written is lost.
    pub(super) async fn fill_from(mut self, mut source: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 4096];
        let mut burst = 0;
        while let Ok(count @ 1..) = source.read(&mut buffer).await {
            if let Err(error) = self.append(&buffer[..count]) {
                log::debug!("Could not write the console log: {error}");
            }
            burst += count;
            if burst >= BURST {
                burst = 0;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The last lines of the file at `path`, as [`last_lines`] gives them; empty if there is none.
pub(super) fn tail_of(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(4096);
        let mut bytes = vec![0; 4096];
        let count = file.read_at(&mut bytes, start)?;
        bytes.truncate(count);
        Ok(bytes)
    };
    read().map(|bytes| last_lines(&bytes)).unwrap_or_default()
}

/// The last lines of `bytes`, joined by ` | `, or those from a kernel's panic on, as its trace would push the reason
/// out. The guest wrote them: whatever is not plain text is left out.
pub(super) fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if let Some(panic) = text.rfind("Kernel panic") {
        return text[panic..]
            .lines()
            .map(plain)
            .filter(|line| !line.is_empty())
            .take(3)
            .collect::<Vec<_>>()
            .join(" | ");
    }
    let mut lines: Vec<String> =
        text.lines().rev().map(plain).filter(|line| !line.is_empty()).take(LAST_LINES).collect();
    lines.reverse();
    lines.join(" | ")
}

fn plain(line: &str) -> String {
    let visible = line.chars().filter(|each| !each.is_control() && *each != char::REPLACEMENT_CHARACTER);
    visible.take(LINE).collect::<String>().trim().to_owned()
}

/// Reads `source` to its end and answers the last 4 KiB.
pub(super) async fn keep_last(mut source: impl AsyncRead + Unpin) -> Vec<u8> {
    const MOST: usize = 4096;
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = source.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        kept.drain(..kept.len().saturating_sub(MOST));
    }
    kept
}

/// Where the console's log of the sandbox in `dir` is.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("console.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_beginning_and_the_end_and_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        let mut log = Log::create(&path).unwrap();
        let mut all = Vec::new();
        for number in 0..60_000 {
            let line = format!("line {number}\n");
            log.append(line.as_bytes()).unwrap();
            all.extend_from_slice(line.as_bytes());
            let most = HEAD + 2 * TAIL;
            assert!(std::fs::metadata(&path).unwrap().len() <= most, "after line {number}");
        }
        let kept = std::fs::read(&path).unwrap();
        let [head, tail] = [HEAD, TAIL].map(|size| usize::try_from(size).unwrap());
        assert!(all.len() > head + 4 * tail, "the test must drop more than once");
        assert_eq!(kept[..head], all[..head]);
        assert_eq!(kept[kept.len() - tail..], all[all.len() - tail..]);
        assert!(String::from_utf8_lossy(&kept).contains("bytes dropped here"));
        assert!(tail_of(&path).ends_with("line 59998 | line 59999"));
    }

    #[test]
    fn last_lines_are_plain_text_whatever_the_guest_prints() {
        let mut bytes = b"first\x1b[2J\x07 \xff\n\n\r\n".to_vec();
        bytes.extend(vec![b'x'; 1000]);
        let text = last_lines(&bytes);
        assert_eq!(text, format!("first[2J | {}", "x".repeat(LINE)));
        let many: String = (0..100).map(|number| format!("{number}\n")).collect();
        let panic = format!("x\n[1.2] Kernel panic - not syncing: no init\nCPU: 0\n{many}");
        assert_eq!(last_lines(panic.as_bytes()), "Kernel panic - not syncing: no init | CPU: 0 | 0");
        assert_eq!(last_lines(many.as_bytes()), "90 | 91 | 92 | 93 | 94 | 95 | 96 | 97 | 98 | 99");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_prints_without_end_is_slowed_down() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::create(&path(dir.path())).unwrap();
        let start = tokio::time::Instant::now();
        log.fill_from(&vec![b'x'; 64 * BURST][..]).await;
        assert_eq!(start.elapsed(), 64 * PAUSE);
    }

    #[tokio::test]
    async fn only_the_last_of_a_stream_is_kept() {
        let source: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
        assert_eq!(keep_last(&source[..]).await, source[source.len() - 4096..]);
    }
}
