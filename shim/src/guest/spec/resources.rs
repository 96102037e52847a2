//! OCI resources → guest: the limits that make sense in there. Called by the translation and by updates.

use agent_proto::oci;
use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxResources};

use super::linux;

/// Translates limits. CPU and memory node numbers, block device and network class limits are the host's and stay
/// behind; the host's own cgroups hold them.
#[must_use]
pub fn resources(resources: &LinuxResources) -> oci::LinuxResources {
    let pids = resources.pids().map(|pids| oci::LinuxPids { Limit: pids.limit(), ..Default::default() });
    let pages = resources.hugepage_limits().iter().flatten().map(|limit| oci::LinuxHugepageLimit {
        Pagesize: limit.page_size().clone(),
        Limit: u64::try_from(limit.limit()).unwrap_or(u64::MAX),
        ..Default::default()
    });
    let weight = resources.block_io().as_ref().and_then(|io| io.weight());
    let block_io = weight.map(|weight| oci::LinuxBlockIO { Weight: weight.into(), ..Default::default() });
    oci::LinuxResources {
        Devices: resources.devices().iter().flatten().filter_map(device).collect(),
        Memory: resources.memory().as_ref().map(memory).into(),
        CPU: resources.cpu().as_ref().map(cpu).into(),
        Pids: pids.into(),
        BlockIO: block_io.into(),
        HugepageLimits: pages.collect(),
        ..Default::default()
    }
}

fn memory(memory: &LinuxMemory) -> oci::LinuxMemory {
    oci::LinuxMemory {
        Limit: memory.limit().unwrap_or_default(),
        Reservation: memory.reservation().unwrap_or_default(),
        Swap: memory.swap().unwrap_or_default(),
        Kernel: memory.kernel().unwrap_or_default(),
        KernelTCP: memory.kernel_tcp().unwrap_or_default(),
        Swappiness: memory.swappiness().unwrap_or_default(),
        DisableOOMKiller: memory.disable_oom_killer().unwrap_or_default(),
        ..Default::default()
    }
}

fn cpu(cpu: &LinuxCpu) -> oci::LinuxCPU {
    oci::LinuxCPU {
        Shares: cpu.shares().unwrap_or_default(),
        Quota: cpu.quota().unwrap_or_default(),
        Period: cpu.period().unwrap_or_default(),
        RealtimeRuntime: cpu.realtime_runtime().unwrap_or_default(),
        RealtimePeriod: cpu.realtime_period().unwrap_or_default(),
        ..Default::default()
    }
}

/// A rule for all devices, or for one that means the same in the guest; others would speak of the host's.
fn device(rule: &LinuxDeviceCgroup) -> Option<oci::LinuxDeviceCgroup> {
    let (major, minor) = (rule.major().unwrap_or(-1), rule.minor().unwrap_or(-1));
    if (major >= 0 || minor >= 0) && !linux::is_standard(major, minor) {
        return None;
    }
    Some(oci::LinuxDeviceCgroup {
        Allow: rule.allow(),
        Type: rule.typ().map_or_else(|| "a".into(), |typ| typ.as_str().into()),
        Major: major,
        Minor: minor,
        Access: rule.access().clone().unwrap_or_default(),
        ..Default::default()
    })
}
