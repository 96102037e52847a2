//! A container's limits as the two versions of the cgroup filesystem spell them. No I/O here.

use std::fmt::Display;

use oci_spec::runtime::LinuxResources;

/// A value for one file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: String,
}

impl Setting {
    fn new(file: &'static str, value: &impl Display) -> Self {
        Setting { file, value: value.to_string() }
    }
}

/// For the older hierarchy that `has` these controllers. Negative means unlimited there as in the OCI spec.
pub(super) fn old(resources: &LinuxResources, has: impl Fn(&str) -> bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |file, value: Option<i128>| settings.extend(value.map(|value| Setting::new(file, &value)));
    if let Some(memory) = resources.memory().as_ref().filter(|_| has("memory")) {
        set("memory.limit_in_bytes", nonzero(memory.limit()));
        // Where swap accounting is off this file is missing.
        set("memory.memsw.limit_in_bytes", nonzero(memory.swap()));
        set("memory.soft_limit_in_bytes", nonzero(memory.reservation()));
    }
    if let Some(cpu) = resources.cpu().as_ref().filter(|_| has("cpu")) {
        set("cpu.shares", cpu.shares().filter(|shares| *shares != 0).map(i128::from));
        set("cpu.cfs_period_us", cpu.period().filter(|period| *period != 0).map(i128::from));
        set("cpu.cfs_quota_us", nonzero(cpu.quota()));
    }
    if let Some(pids) = resources.pids().as_ref().filter(|pids| has("pids") && pids.limit() != 0) {
        settings.push(Setting::new("pids.max", &max_or(pids.limit())));
    }
    settings
}

/// For the unified hierarchy.
pub(super) fn unified(resources: &LinuxResources) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit().filter(|limit| *limit != 0) {
            settings.push(Setting::new("memory.max", &max_or(limit)));
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            settings.push(Setting::new("memory.low", &max_or(low)));
        }
        // The OCI spec counts memory and swap together, this hierarchy swap alone.
        match (memory.swap(), memory.limit()) {
            (Some(swap), _) if swap < 0 => settings.push(Setting::new("memory.swap.max", &"max")),
            (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
                settings.push(Setting::new("memory.swap.max", &(swap - limit)));
            }
            _ => {}
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            settings.push(Setting::new("cpu.weight", &weight(shares)));
        }
        let period = cpu.period().filter(|period| *period != 0);
        match (cpu.quota().filter(|quota| *quota != 0), period) {
            (Some(quota), Some(period)) => {
                settings.push(Setting::new("cpu.max", &format!("{} {period}", max_or(quota))));
            }
            // The kernel keeps the period that it has.
            (Some(quota), None) => settings.push(Setting::new("cpu.max", &max_or(quota))),
            (None, Some(period)) => settings.push(Setting::new("cpu.max", &format!("max {period}"))),
            (None, None) => {}
        }
    }
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        settings.push(Setting::new("pids.max", &max_or(pids.limit())));
    }
    settings
}

/// Zero is how clients written in Go say that a field is not set.
fn nonzero(value: Option<i64>) -> Option<i128> {
    value.filter(|value| *value != 0).map(i128::from)
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// Shares of 2 to 262144 are weights of 1 to 10000, by the line that every OCI runtime uses.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn texts(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|Setting { file, value }| format!("{file}={value}")).collect()
    }

    const ALL: &str = r#"{"memory":{"limit":1048576,"swap":2097152,"reservation":4096},
        "cpu":{"shares":1024,"quota":50000,"period":100000},"pids":{"limit":7}}"#;
    const UNLIMITED: &str =
        r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1,"period":100000},"pids":{"limit":-1}}"#;
    const UNSET: &str =
        r#"{"memory":{"limit":0},"cpu":{"shares":0,"quota":0,"period":0},"pids":{"limit":0}}"#;

    #[test]
    fn unified_limits() {
        let all = [
            "memory.max=1048576",
            "memory.low=4096",
            "memory.swap.max=1048576",
            "cpu.weight=39",
            "cpu.max=50000 100000",
            "pids.max=7",
        ];
        assert_eq!(texts(&unified(&resources(ALL))), all);
        let unlimited = ["memory.max=max", "memory.swap.max=max", "cpu.max=max 100000", "pids.max=max"];
        assert_eq!(texts(&unified(&resources(UNLIMITED))), unlimited);
        assert!(unified(&resources(UNSET)).is_empty());
    }

    #[test]
    fn old_limits_go_to_their_own_hierarchies() {
        let memory = [
            "memory.limit_in_bytes=1048576",
            "memory.memsw.limit_in_bytes=2097152",
            "memory.soft_limit_in_bytes=4096",
        ];
        assert_eq!(texts(&old(&resources(ALL), |name| name == "memory")), memory);
        let cpu = ["cpu.shares=1024", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"];
        assert_eq!(texts(&old(&resources(ALL), |name| name == "cpu")), cpu);
        assert_eq!(texts(&old(&resources(UNLIMITED), |name| name == "pids")), ["pids.max=max"]);
        assert!(old(&resources(UNSET), |_| true).is_empty());
        assert!(old(&resources(ALL), |_| false).is_empty());
    }

    #[test]
    fn weights_stay_in_their_range() {
        assert_eq!([2, 262_144, 0, u64::MAX].map(weight), [1, 10_000, 1, 10_000]);
    }
}
