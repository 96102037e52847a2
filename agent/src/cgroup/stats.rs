//! Statistics of a cgroup v2 group, in the units of the agent's protocol (nanoseconds, bytes).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use agent_proto::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, HugetlbStats, MemoryData, MemoryStats, PidsStats,
};
use protobuf::MessageField;

use crate::error::{Context as _, Result};

/// Reads all statistics; a controller that is missing counts as nothing.
pub(super) fn read(group: &Path) -> Result<CgroupStats> {
    let files = Files { group };
    let mut stats = CgroupStats::new();
    stats.cpu_stats = MessageField::some(cpu(&files)?);
    stats.memory_stats = MessageField::some(memory(&files)?);
    stats.blkio_stats = MessageField::some(io(&files.text("io.stat")?));
    let mut pids = PidsStats::new();
    pids.current = files.number("pids.current")?;
    pids.limit = limit(files.number("pids.max")?);
    stats.pids_stats = MessageField::some(pids);
    stats.hugetlb_stats = hugetlb(&files)?;
    Ok(stats)
}

struct Files<'a> {
    group: &'a Path,
}

impl Files<'_> {
    /// A file's text, empty if it does not exist.
    fn text(&self, file: &str) -> Result<String> {
        let path = self.group.join(file);
        match fs::read_to_string(&path) {
            // The group may be removed while it is read.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(String::new())
            }
            // A kernel without swap has the file but does not count.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
            result => result.context(|| format!("Could not read {}", path.display())),
        }
    }

    /// A single number; "max" is the largest there is, nothing is 0.
    fn number(&self, file: &str) -> Result<u64> {
        let text = self.text(file)?;
        Ok(if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap_or(0) })
    }

    /// Lines of "key value".
    fn table(&self, file: &str) -> Result<HashMap<String, u64>> {
        let text = self.text(file)?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect())
    }
}

fn cpu(files: &Files<'_>) -> Result<CpuStats> {
    let table = files.table("cpu.stat")?;
    let value = |key: &str| table.get(key).copied().unwrap_or(0);
    let nanoseconds = |key: &str| value(key).saturating_mul(1000);
    let mut stats = CpuStats::new();
    let usage = stats.cpu_usage.mut_or_insert_default();
    usage.total_usage = nanoseconds("usage_usec");
    usage.usage_in_usermode = nanoseconds("user_usec");
    usage.usage_in_kernelmode = nanoseconds("system_usec");
    let throttling = stats.throttling_data.mut_or_insert_default();
    throttling.periods = value("nr_periods");
    throttling.throttled_periods = value("nr_throttled");
    throttling.throttled_time = nanoseconds("throttled_usec");
    Ok(stats)
}

fn memory(files: &Files<'_>) -> Result<MemoryStats> {
    let mut stats = MemoryStats::new();
    stats.stats = files.table("memory.stat")?;
    let value = |key: &str| stats.stats.get(key).copied().unwrap_or(0);
    stats.cache = value("file");
    let mut kernel = MemoryData::new();
    kernel.usage = value("kernel");
    stats.kernel_usage = MessageField::some(kernel);
    stats.use_hierarchy = true;
    let hits = |file: &str| Ok(files.table(file)?.get("max").copied().unwrap_or(0));
    stats.usage = MessageField::some(amount(files, "memory", hits("memory.events")?)?);
    stats.swap_usage = MessageField::some(amount(files, "memory.swap", hits("memory.swap.events")?)?);
    Ok(stats)
}

fn amount(files: &Files<'_>, prefix: &str, failures: u64) -> Result<MemoryData> {
    let mut data = MemoryData::new();
    data.usage = files.number(&format!("{prefix}.current"))?;
    data.max_usage = files.number(&format!("{prefix}.peak"))?.max(data.usage);
    data.limit = files.number(&format!("{prefix}.max"))?;
    data.failcnt = failures;
    Ok(data)
}

/// Of an unlimited number of processes the protocol says 0.
fn limit(value: u64) -> u64 {
    if value == u64::MAX { 0 } else { value }
}

/// `io.stat`: "major:minor rbytes=… wbytes=… rios=… wios=… …" per device.
fn io(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            let mut entry = BlkioStatsEntry::new();
            (entry.major, entry.minor, entry.op) = (major, minor, op.to_owned());
            entry.value = value.parse().unwrap_or(0);
            list.push(entry);
        }
    }
    stats
}

fn hugetlb(files: &Files<'_>) -> Result<HashMap<String, HugetlbStats>> {
    let mut all = HashMap::new();
    let Ok(entries) = fs::read_dir(files.group) else { return Ok(all) };
    for entry in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some(size) = entry.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".current")) else {
            continue;
        };
        if size.ends_with(".rsvd") {
            continue;
        }
        let mut stats = HugetlbStats::new();
        stats.usage = files.number(&entry)?;
        stats.max_usage = stats.usage;
        stats.failcnt = files.table(&format!("hugetlb.{size}.events"))?.get("max").copied().unwrap_or(0);
        all.insert(size.to_owned(), stats);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_kernel_writes() {
        let group = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(group.path().join(file), text).unwrap();
        write(
            "cpu.stat",
            "usage_usec 12\nuser_usec 8\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
        );
        write("memory.current", "4096\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 1\nfile 2\nkernel 3\n");
        write("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n");
        write("pids.current", "5\n");
        write("pids.max", "64\n");
        write("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nnonsense\n");
        write("hugetlb.2MB.current", "2097152\n");
        write("hugetlb.2MB.rsvd.current", "1\n");
        let stats = read(group.path()).unwrap();
        let usage = &stats.cpu_stats.cpu_usage;
        assert_eq!(
            (usage.total_usage, usage.usage_in_usermode, usage.usage_in_kernelmode),
            (12_000, 8_000, 4_000)
        );
        assert_eq!(stats.cpu_stats.throttling_data.throttled_time, 1_000);
        let memory = &stats.memory_stats;
        assert_eq!((memory.usage.usage, memory.usage.limit, memory.usage.failcnt), (4096, u64::MAX, 9));
        assert_eq!((memory.cache, memory.kernel_usage.usage, memory.swap_usage.usage), (2, 3, 0));
        assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (5, 64));
        let bytes: Vec<_> = stats
            .blkio_stats
            .io_service_bytes_recursive
            .iter()
            .map(|it| (it.op.as_str(), it.value))
            .collect();
        assert_eq!(bytes, [("Read", 10), ("Write", 20)]);
        assert_eq!(stats.hugetlb_stats.keys().collect::<Vec<_>>(), ["2MB"]);
    }

    #[test]
    fn a_group_without_controllers_has_used_nothing() {
        let group = tempfile::tempdir().unwrap();
        let stats = read(group.path()).unwrap();
        assert_eq!((stats.memory_stats.usage.usage, stats.pids_stats.current), (0, 0));
    }
}
