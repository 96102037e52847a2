//! The guest as a machine: its clock, its random numbers, what it is made of. Called by `rpc`.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::error::{Context as _, Error, Kind, Result};

/// Most entropy of one call: the kernel's pool has 32 bytes, more than a few times that is a mistake.
const MOST_ENTROPY: usize = 4096;
const NANOSECONDS: i64 = 1_000_000_000;

mod ioctl {
    //! The random device's (linux/random.h).
    nix::ioctl_write_ptr_bad!(add_entropy, nix::request_code_write!(b'R', 0x03, 8), super::RandPoolInfo);
    nix::ioctl_none!(reseed_crng, b'R', 0x07);
}

/// rand_pool_info with its buffer.
#[repr(C)]
#[derive(Debug)]
pub struct RandPoolInfo {
    entropy_count: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MOST_ENTROPY],
}

/// Mixes entropy from the host into the kernel's pool, credits it and draws a new key from it at once: from here on two
/// clones of a guest give different random numbers.
///
/// # Errors
/// `InvalidArgument` without entropy or with too much, else the kernel's.
pub fn reseed(entropy: &[u8]) -> Result<()> {
    if entropy.is_empty() || entropy.len() > MOST_ENTROPY {
        let text = format!("Entropy must have 1 to {MOST_ENTROPY} bytes, not {}", entropy.len());
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let size = libc::c_int::try_from(entropy.len()).context(|| "Too much entropy")?;
    let mut info = RandPoolInfo { entropy_count: size * 8, size, bytes: [0; MOST_ENTROPY] };
    info.bytes[..entropy.len()].copy_from_slice(entropy);
    let random =
        OpenOptions::new().write(true).open("/dev/random").context(|| "Could not open /dev/random")?;
    // SAFETY: the kernel reads the structure's head and `size` bytes after it, which are there.
    unsafe { ioctl::add_entropy(random.as_raw_fd(), &raw const info) }.context(|| "Could not add entropy")?;
    // SAFETY: takes no argument.
    unsafe { ioctl::reseed_crng(random.as_raw_fd()) }.context(|| "Could not reseed the random numbers")?;
    Ok(())
}

/// Sets the wall clock.
///
/// # Errors
/// `InvalidArgument` for a time before 1970 or a fraction of a second that is none, else the kernel's.
pub fn set_time(seconds: i64, nanoseconds: i64) -> Result<()> {
    if seconds <= 0 || !(0..NANOSECONDS).contains(&nanoseconds) {
        let text = format!("{seconds} s and {nanoseconds} ns since 1970 is no time to set the clock to");
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let time = TimeSpec::new(seconds, nanoseconds);
    clock_settime(ClockId::CLOCK_REALTIME, time).context(|| "Could not set the clock")
}

/// Bytes of the blocks in which memory is added to the guest; 0 if none can be.
#[must_use]
pub fn memory_block_size() -> u64 {
    let text = fs::read_to_string("/sys/devices/system/memory/block_size_bytes").unwrap_or_default();
    u64::from_str_radix(text.trim(), 16).unwrap_or(0)
}

/// Takes CPUs and memory into use that the VMM has added; answers once at least `cpus` of the CPUs are, if it is to wait.
/// Blocks up to 5 s.
///
/// # Errors
/// `DeadlineExceeded` if the CPUs do not appear.
pub fn online(cpus: u32, cpus_only: bool, wait: bool) -> Result<()> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let wanted = usize::try_from(cpus).unwrap_or(usize::MAX);
    loop {
        let online = online_all("/sys/devices/system/cpu", "cpu", "1");
        if !wait || online >= wanted {
            break;
        }
        if std::time::Instant::now() >= end {
            let text = format!("{cpus} CPUs were to be taken into use, {online} have appeared after 5 s");
            return Err(Error::new(Kind::DeadlineExceeded, text));
        }
        // A CPU's directory appears with a uevent, for which a process of its own would be needed.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    if !cpus_only {
        online_all("/sys/devices/system/memory", "memory", "online");
    }
    Ok(())
}

/// Writes `word` to the state of each numbered device that is not in use; answers how many are in use then.
fn online_all(directory: &str, prefix: &str, word: &str) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let is_numbered = |name: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let devices = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_numbered));
    let take = |device: fs::DirEntry| {
        let online = device.path().join("online");
        match fs::read_to_string(&online) {
            // CPU 0 has no such file: it cannot be taken out of use.
            Err(_) => true,
            Ok(state) if state.trim() == "1" => true,
            Ok(_) => {
                fs::write(device.path().join(if word == "1" { "online" } else { "state" }), word).is_ok()
            }
        }
    };
    devices.map(take).filter(|is_online| *is_online).count()
}

/// The last lines of the kernel's log, at most `most` bytes, without waiting for more.
///
/// # Errors
/// If the log cannot be opened.
pub fn kernel_log(most: usize) -> Result<String> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut log: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context(|| "Could not open /dev/kmsg")?;
    let (mut text, mut record) = (Vec::new(), vec![0; 8192]);
    loop {
        match log.read(&mut record) {
            Ok(count) if count > 0 => text.extend_from_slice(&record[..count]),
            // Overwritten before it was read: the next read goes on after the gap.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            _ => break,
        }
        let excess = text.len().saturating_sub(most);
        text.drain(..excess);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Numbers of the guest in Prometheus's text format.
#[must_use]
pub fn metrics() -> String {
    let mut text = String::new();
    let mut add = |name: &str, help: &str, value: u64| {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"));
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (key, name, help) in [
        ("VmRSS", "microvm_agent_resident_bytes", "Memory of the agent."),
        ("Threads", "microvm_agent_threads", "Threads of the agent."),
    ] {
        add(name, help, field(&status, key));
    }
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    for (key, name, help) in [
        ("MemTotal", "microvm_guest_memory_bytes", "Memory of the guest."),
        ("MemAvailable", "microvm_guest_memory_available_bytes", "Memory that containers could still take."),
        ("Cached", "microvm_guest_memory_cached_bytes", "Files in memory, those on tmpfs included."),
        (
            "Shmem",
            "microvm_guest_memory_shared_bytes",
            "Memory of tmpfs files: what containers have written.",
        ),
    ] {
        add(name, help, field(&memory, key));
    }
    text
}

/// A number of one of the kernel's `Key: value [kB]` tables, in bytes where it has the unit.
fn field(table: &str, key: &str) -> u64 {
    let value = table.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let mut words = value.unwrap_or_default().split_whitespace();
    let number: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    if words.next() == Some("kB") { number * 1024 } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_and_time_that_make_no_sense_are_refused() {
        for entropy in [vec![], vec![0; MOST_ENTROPY + 1]] {
            assert_eq!(reseed(&entropy).unwrap_err().kind(), Kind::InvalidArgument);
        }
        for (seconds, nanoseconds) in [(0, 0), (-1, 0), (1, -1), (1, NANOSECONDS)] {
            assert_eq!(set_time(seconds, nanoseconds).unwrap_err().kind(), Kind::InvalidArgument);
        }
    }

    #[test]
    fn the_kernel_takes_entropy() {
        reseed(&[7; 32]).unwrap();
    }

    #[test]
    fn metrics_have_numbers() {
        let text = metrics();
        let total = text.lines().find_map(|line| line.strip_prefix("microvm_guest_memory_bytes ")).unwrap();
        assert!(total.parse::<u64>().unwrap() > 1024 * 1024, "{text}");
        assert_eq!(field("A:  3 kB\nAB: 4\n", "AB"), 4);
        assert_eq!(field("A:  3 kB\nAB: 4\n", "A"), 3072);
    }
}
