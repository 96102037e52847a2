//! Statistics as containerd and kubelet read them: the guest's figures as one `io.containerd.cgroups.v2.Metrics`.
//! Called by the container's stats request.

use agent_proto::agent::{BlkioStatsEntry, CgroupStats, NetworkStats, StatsContainerResponse};
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};
use protobuf::{Message, MessageField};

use crate::error::{Context, Result};
use crate::task::Stats;

/// Bare protobuf name of the message, which is what CRI compares.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// Nanoseconds in a microsecond: the agent's protocol counts time in the former, cgroup v2 in the latter.
const NANOS: u64 = 1000;

/// The guest's answer, translated.
pub(crate) fn translate(answer: &StatsContainerResponse) -> Result<Stats> {
    let cgroup = answer.cgroup_stats.clone().unwrap_or_default();
    let metrics = Metrics {
        pids: MessageField::some(pids(&cgroup)),
        cpu: MessageField::some(cpu(&cgroup)),
        memory: MessageField::some(memory(&cgroup)),
        memory_events: MessageField::some(memory_events(&cgroup)),
        io: MessageField::some(io(&cgroup)),
        network: answer.network_stats.iter().map(network).collect(),
        ..Metrics::default()
    };
    encode(&metrics)
}

/// CPU time and memory of one host process: what the sandbox's own task (the VM) costs. Zero without a process.
pub(crate) fn of_process(pid: Option<u32>) -> Result<Stats> {
    let (time, resident) = pid.and_then(usage).unwrap_or_default();
    let metrics = Metrics {
        pids: MessageField::some(PidsStat { current: pid.map_or(0, |_| 1), ..PidsStat::default() }),
        cpu: MessageField::some(CPUStat { usage_usec: time, ..CPUStat::default() }),
        memory: MessageField::some(MemoryStat { usage: resident, anon: resident, ..MemoryStat::default() }),
        memory_events: MessageField::some(MemoryEvents::default()),
        ..Metrics::default()
    };
    encode(&metrics)
}

/// Microseconds of CPU time and bytes of resident memory of a process.
fn usage(pid: u32) -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may itself hold spaces and parentheses.
    let fields: Vec<u64> =
        stat.rsplit_once(')')?.1.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect();
    // proc(5): utime and stime are fields 14 and 15, the resident pages field 24; the state, the first here, is 3.
    let ticks = fields.get(11)?.saturating_add(*fields.get(12)?);
    let pages = *fields.get(21)?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let (per_second, page) = (u64::try_from(per_second).ok()?, u64::try_from(page).ok()?);
    Some((ticks.saturating_mul(1_000_000) / per_second, pages.saturating_mul(page)))
}

fn encode(metrics: &Metrics) -> Result<Stats> {
    let value = metrics.write_to_bytes().context(|| "Could not encode the statistics".into())?;
    Ok(Stats { type_url: TYPE.into(), value })
}

fn pids(cgroup: &CgroupStats) -> PidsStat {
    PidsStat { current: cgroup.pids_stats.current, limit: cgroup.pids_stats.limit, ..PidsStat::default() }
}

fn cpu(cgroup: &CgroupStats) -> CPUStat {
    let usage = &cgroup.cpu_stats.cpu_usage;
    let throttling = &cgroup.cpu_stats.throttling_data;
    CPUStat {
        usage_usec: usage.total_usage / NANOS,
        user_usec: usage.usage_in_usermode / NANOS,
        system_usec: usage.usage_in_kernelmode / NANOS,
        nr_periods: throttling.periods,
        nr_throttled: throttling.throttled_periods,
        throttled_usec: throttling.throttled_time / NANOS,
        ..CPUStat::default()
    }
}

fn memory(cgroup: &CgroupStats) -> MemoryStat {
    let stats = &cgroup.memory_stats;
    let of = |name: &str| stats.stats.get(name).copied().unwrap_or_default();
    MemoryStat {
        usage: stats.usage.usage,
        usage_limit: stats.usage.limit,
        max_usage: stats.usage.max_usage,
        swap_usage: stats.swap_usage.usage,
        swap_limit: stats.swap_usage.limit,
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        ..MemoryStat::default()
    }
}

/// The guest's agent passes the counts of `memory.events` on among the memory's statistics.
fn memory_events(cgroup: &CgroupStats) -> MemoryEvents {
    let of = |name: &str| cgroup.memory_stats.stats.get(name).copied().unwrap_or_default();
    MemoryEvents { max: of("max"), oom: of("oom"), oom_kill: of("oom_kill"), ..MemoryEvents::default() }
}

/// Bytes and requests of each device, from the agent's two lists of `(device, operation, count)`.
fn io(cgroup: &CgroupStats) -> IOStat {
    let mut usage: Vec<IOEntry> = Vec::new();
    let blkio = &cgroup.blkio_stats;
    for entry in &blkio.io_service_bytes_recursive {
        let device = device(&mut usage, entry);
        match entry.op.to_ascii_lowercase().as_str() {
            "read" => device.rbytes = entry.value,
            "write" => device.wbytes = entry.value,
            _ => {}
        }
    }
    for entry in &blkio.io_serviced_recursive {
        let device = device(&mut usage, entry);
        match entry.op.to_ascii_lowercase().as_str() {
            "read" => device.rios = entry.value,
            "write" => device.wios = entry.value,
            _ => {}
        }
    }
    IOStat { usage, ..IOStat::default() }
}

fn device<'a>(usage: &'a mut Vec<IOEntry>, entry: &BlkioStatsEntry) -> &'a mut IOEntry {
    let known = usage.iter().position(|known| (known.major, known.minor) == (entry.major, entry.minor));
    let index = known.unwrap_or_else(|| {
        usage.push(IOEntry { major: entry.major, minor: entry.minor, ..IOEntry::default() });
        usage.len() - 1
    });
    &mut usage[index]
}

fn network(device: &NetworkStats) -> NetworkStat {
    NetworkStat {
        name: device.name.clone(),
        rx_bytes: device.rx_bytes,
        rx_packets: device.rx_packets,
        rx_errors: device.rx_errors,
        rx_dropped: device.rx_dropped,
        tx_bytes: device.tx_bytes,
        tx_packets: device.tx_packets,
        tx_errors: device.tx_errors,
        tx_dropped: device.tx_dropped,
        ..NetworkStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_arrive_in_the_fields_and_units_that_kubelet_reads() {
        let mut answer = StatsContainerResponse::new();
        let cgroup = answer.cgroup_stats.mut_or_insert_default();
        cgroup.cpu_stats.mut_or_insert_default().cpu_usage.mut_or_insert_default().total_usage = 5_000;
        cgroup.pids_stats.mut_or_insert_default().current = 3;
        let memory = cgroup.memory_stats.mut_or_insert_default();
        memory.usage.mut_or_insert_default().usage = 4096;
        memory.stats = [("inactive_file", 1024), ("oom_kill", 2)].map(|(key, n)| (key.into(), n)).into();
        let blkio = cgroup.blkio_stats.mut_or_insert_default();
        let entry =
            |op: &str, value| BlkioStatsEntry { major: 254, op: op.into(), value, ..Default::default() };
        blkio.io_service_bytes_recursive = vec![entry("Read", 10), entry("Write", 20)];
        blkio.io_serviced_recursive = vec![entry("read", 1)];

        let stats = translate(&answer).unwrap();
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = Metrics::parse_from_bytes(&stats.value).unwrap();
        assert_eq!(metrics.cpu.usage_usec, 5);
        assert_eq!((metrics.memory.usage, metrics.memory.inactive_file), (4096, 1024));
        assert_eq!(metrics.memory_events.oom_kill, 2);
        assert_eq!(metrics.pids.current, 3);
        let device = &metrics.io.usage[0];
        assert_eq!((device.rbytes, device.wbytes, device.rios, metrics.io.usage.len()), (10, 20, 1, 1));
    }

    #[test]
    fn a_process_has_memory_and_none_has_nothing() {
        let usage = |pid| {
            let metrics = Metrics::parse_from_bytes(&of_process(pid).unwrap().value).unwrap();
            (metrics.pids.current, metrics.memory.usage)
        };
        let (count, memory) = usage(Some(std::process::id()));
        assert!(count == 1 && memory > 1 << 20, "{count} {memory}");
        assert_eq!(usage(None), (0, 0));
    }

    #[test]
    fn an_empty_answer_is_a_valid_message() {
        let stats = translate(&StatsContainerResponse::new()).unwrap();
        assert!(Metrics::parse_from_bytes(&stats.value).is_ok());
    }
}
