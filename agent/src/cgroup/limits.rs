//! OCI resources as values of cgroup v2 control files.

use std::io;
use std::path::Path;

use agent_proto::oci::{LinuxBlockIO, LinuxCPU, LinuxMemory, LinuxResources};
use log::warn;

use crate::error::{Context as _, Result};

/// The kernel's default period of a CPU quota, in microseconds.
const PERIOD: u64 = 100_000;

/// One control file and what to write to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    file: String,
    value: String,
    /// The machine may be smaller than the spec thinks (CPUs, memory nodes): then skipped with a warning.
    lenient: bool,
}

impl Setting {
    fn new(file: impl Into<String>, value: impl Into<String>) -> Self {
        Self { file: file.into(), value: value.into(), lenient: false }
    }

    fn lenient(self) -> Self {
        Self { lenient: true, ..self }
    }

    /// Writes it. A control that this kernel does not have is skipped with a warning.
    pub(super) fn apply(&self, group: &Path) -> Result<()> {
        let path = group.join(&self.file);
        match super::files::write(&path, &self.value) {
            Err(error) if self.lenient || unsupported(&error) => {
                warn!("Skipped the limit {:?} for {}: {error}", self.value, path.display());
                Ok(())
            }
            result => result.context(|| format!("Could not set {} to {:?}", path.display(), self.value)),
        }
    }
}

fn unsupported(error: &io::Error) -> bool {
    // Without the controller there is no file, and none can be made in cgroupfs (which may answer "permission denied").
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EACCES))
}

/// What `resources` asks for, in the order to be written. Zero and empty mean "not named"; the kernel memory, real-time and
/// network fields have no counterpart in cgroup v2.
pub(super) fn settings(resources: &LinuxResources) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.Memory.as_ref() {
        settings.extend(memory_settings(memory));
    }
    if let Some(cpu) = resources.CPU.as_ref() {
        settings.extend(cpu_settings(cpu));
    }
    if let Some(pids) = resources.Pids.as_ref().filter(|pids| pids.Limit != 0) {
        settings.push(Setting::new("pids.max", max_or(pids.Limit)));
    }
    if let Some(io) = resources.BlockIO.as_ref() {
        settings.extend(io_settings(io));
    }
    for huge in &resources.HugepageLimits {
        settings
            .push(Setting::new(format!("hugetlb.{}.max", huge.Pagesize), huge.Limit.to_string()).lenient());
    }
    settings
}

fn memory_settings(memory: &LinuxMemory) -> Vec<Setting> {
    let mut settings = Vec::new();
    // The spec's swap limit is that of memory and swap together, cgroup v2 counts swap alone.
    match memory.Swap {
        0 => {}
        both if both < 0 => settings.push(Setting::new("memory.swap.max", "max")),
        both if memory.Limit > 0 => {
            settings
                .push(Setting::new("memory.swap.max", both.saturating_sub(memory.Limit).max(0).to_string()));
        }
        _ => warn!("Skipped the swap limit {}: it counts only together with a memory limit", memory.Swap),
    }
    if memory.Limit != 0 {
        settings.push(Setting::new("memory.max", max_or(memory.Limit)));
    }
    if memory.Reservation > 0 {
        settings.push(Setting::new("memory.low", memory.Reservation.to_string()));
    }
    settings
}

fn cpu_settings(cpu: &LinuxCPU) -> Vec<Setting> {
    let mut settings = Vec::new();
    if cpu.Shares != 0 {
        settings.push(Setting::new("cpu.weight", weight(cpu.Shares).to_string()));
    }
    if cpu.Quota != 0 || cpu.Period != 0 {
        let period = if cpu.Period == 0 { PERIOD } else { cpu.Period };
        let quota = if cpu.Quota > 0 { cpu.Quota.to_string() } else { "max".to_owned() };
        settings.push(Setting::new("cpu.max", format!("{quota} {period}")));
    }
    if !cpu.Cpus.is_empty() {
        settings.push(Setting::new("cpuset.cpus", cpu.Cpus.as_str()).lenient());
    }
    if !cpu.Mems.is_empty() {
        settings.push(Setting::new("cpuset.mems", cpu.Mems.as_str()).lenient());
    }
    if cpu.RealtimeRuntime != 0 || cpu.RealtimePeriod != 0 {
        warn!("Skipped the real-time CPU limits: cgroup v2 has none");
    }
    settings
}

fn io_settings(io: &LinuxBlockIO) -> Vec<Setting> {
    let mut settings = Vec::new();
    if io.Weight != 0 {
        // 10..1000 of the spec to 1..10000 of cgroup v2, as the OCI runtimes do.
        let weight = 1 + (u64::from(io.Weight.clamp(10, 1000)) - 10) * 9999 / 990;
        settings.push(Setting::new("io.weight", weight.to_string()).lenient());
    }
    let throttles = [
        ("rbps", &io.ThrottleReadBpsDevice),
        ("wbps", &io.ThrottleWriteBpsDevice),
        ("riops", &io.ThrottleReadIOPSDevice),
        ("wiops", &io.ThrottleWriteIOPSDevice),
    ];
    for (key, devices) in throttles {
        let lines = devices.iter().map(|it| format!("{}:{} {key}={}", it.Major, it.Minor, it.Rate));
        settings.extend(lines.map(|line| Setting::new("io.max", line).lenient()));
    }
    settings
}

fn max_or(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// CPU shares (2..262144, default 1024) as a weight (1..10000, default 100) on the curve that the OCI runtimes agreed on in 2025:
/// it goes through both defaults and both ends.
fn weight(shares: u64) -> u32 {
    let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX).clamp(2, 262_144)).log2();
    let weight = 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..10000 before")]
    let weight = weight.clamp(1.0, 10_000.0) as u32;
    weight
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn pairs(resources: &LinuxResources) -> Vec<(String, String)> {
        settings(resources).into_iter().map(|it| (it.file, it.value)).collect()
    }

    #[test]
    fn weights_meet_the_defaults_and_the_ends() {
        assert_eq!([2, 1024, 262_144, u64::MAX, 0].map(weight), [1, 100, 10_000, 10_000, 1]);
        assert!((2..5000).map(weight).collect::<Vec<_>>().is_sorted());
    }

    #[test]
    fn resources_become_control_files() {
        let mut resources = LinuxResources::new();
        assert!(pairs(&resources).is_empty());
        let memory = resources.Memory.mut_or_insert_default();
        (memory.Limit, memory.Swap, memory.Reservation, memory.Kernel) = (100, 150, 50, 7);
        let cpu = resources.CPU.mut_or_insert_default();
        (cpu.Shares, cpu.Quota, cpu.RealtimeRuntime, cpu.Cpus) = (1024, 50_000, 5, "0-1".to_owned());
        resources.Pids.mut_or_insert_default().Limit = -1;
        let expected = [
            ("memory.swap.max", "50"),
            ("memory.max", "100"),
            ("memory.low", "50"),
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("cpuset.cpus", "0-1"),
            ("pids.max", "max"),
        ];
        let expected = expected.map(|(file, value)| (file.to_owned(), value.to_owned()));
        assert_eq!(pairs(&resources), expected);
    }

    #[test]
    fn swap_equal_to_memory_is_no_swap_and_a_removed_quota_is_max() {
        let mut resources = LinuxResources::new();
        let memory = resources.Memory.mut_or_insert_default();
        (memory.Limit, memory.Swap) = (100, 100);
        let cpu = resources.CPU.mut_or_insert_default();
        (cpu.Quota, cpu.Period) = (-1, 20_000);
        let all = pairs(&resources);
        assert!(all.contains(&("memory.swap.max".to_owned(), "0".to_owned())), "{all:?}");
        assert!(all.contains(&("cpu.max".to_owned(), "max 20000".to_owned())), "{all:?}");
    }

    #[test]
    fn what_the_kernel_lacks_is_skipped_and_what_it_has_is_written() {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("memory.max"), "").unwrap();
        Setting::new("memory.max", "5").apply(group.path()).unwrap();
        Setting::new("pids.max", "5").apply(group.path()).unwrap();
        assert_eq!(fs::read_to_string(group.path().join("memory.max")).unwrap(), "5");
        assert!(!group.path().join("pids.max").exists());
    }
}
