//! The virtual machine, whatever runs it: one folder for each VMM, and what all of them share. Called by
//! `sandbox`; knows no container, no snapshot format and no image.

mod cloud_hypervisor;
mod console;
mod cpu;
mod life;
pub mod memory;
mod probe;
mod process;
mod qemu;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::net::UnixStream;
use tokio::sync::watch;

use self::cloud_hypervisor::CloudHypervisor;
pub use self::cloud_hypervisor::rewritten_description;
pub use self::probe::{FileIdentity, Host};
use self::qemu::{Accelerator, Qemu};
use crate::config::{self, Config, VmmChoice};
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::Ledger;

/// The VMM for this host, as the config wants it. The first pod after a boot of the host waits for the probe of KVM,
/// at most 20 s, unless the config names the accelerator.
///
/// # Errors
/// `NotFound` without a VMM; else why it does not run.
pub async fn choose(config: &Config) -> Result<Arc<dyn Vmm>> {
    let auto = config.accelerator() == config::Accelerator::Auto;
    let host = Host::examine(config, auto).await?;
    match pick(config.vmm(), config.accelerator(), &host)? {
        Pick::Qemu(accelerator) => {
            let version = host.qemu()?.to_owned();
            Ok(Arc::new(Qemu { path: config.qemu_path().to_owned(), version, accelerator }))
        }
        Pick::CloudHypervisor => {
            let landlock = config.landlock();
            if landlock {
                cloud_hypervisor::needs_landlock()?;
            }
            let (path, version) =
                (config.cloud_hypervisor_path().to_owned(), host.cloud_hypervisor()?.parse()?);
            Ok(Arc::new(CloudHypervisor { path, version, landlock }))
        }
    }
}

/// Which VMM runs the pods, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pick {
    Qemu(Accelerator),
    CloudHypervisor,
}

/// Cloud Hypervisor where KVM works, QEMU everywhere else, unless the config names one.
fn pick(vmm: VmmChoice, accelerator: config::Accelerator, host: &Host) -> Result<Pick> {
    let kvm = match accelerator {
        config::Accelerator::Tcg => Err(Error::new(Kind::FailedPrecondition, "the config wants emulation")),
        config::Accelerator::Kvm => Ok(()),
        config::Accelerator::Auto => host.kvm(),
    };
    match vmm {
        VmmChoice::CloudHypervisor => {
            host.cloud_hypervisor()?;
            kvm.context(|| "Cloud Hypervisor needs KVM; vmm = \"qemu\" in the config does without".into())?;
            Ok(Pick::CloudHypervisor)
        }
        VmmChoice::Auto if kvm.is_ok() && host.cloud_hypervisor().is_ok() => Ok(Pick::CloudHypervisor),
        VmmChoice::Auto | VmmChoice::Qemu if kvm.is_ok() => Ok(Pick::Qemu(Accelerator::Kvm)),
        VmmChoice::Auto | VmmChoice::Qemu => Ok(Pick::Qemu(Accelerator::Tcg)),
    }
}

/// What this host can run, for a person to read; tries KVM if nobody has since the host booted.
///
/// # Errors
/// As [`choose`].
pub async fn examine(config: &Config) -> Result<Host> {
    Host::examine(config, true).await
}

/// The binary of the VMM `identity`.
pub(crate) fn binary<'a>(config: &'a Config, identity: &VmmIdentity) -> &'a Path {
    if identity.name == "qemu" { config.qemu_path() } else { config.cloud_hypervisor_path() }
}

/// A virtio-fs device, served by a virtiofsd that already listens on `socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsDevice {
    /// Mount tag in the guest: `kataShared` or `volumes`.
    pub tag: String,
    /// vhost-user socket of the daemon.
    pub socket: PathBuf,
}

/// A network device, backed by a tap that exists in the pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    /// Name of the tap in the pod's network namespace.
    pub tap: String,
    /// MAC address that the guest sees at boot, as `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
}

/// Where the VMM process lives on the host.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Network namespace to start in; the shim's own if none.
    pub netns: Option<PathBuf>,
    /// `cgroup.procs` (or `tasks`) files that the process writes itself into before it execs.
    pub cgroup_procs: Vec<PathBuf>,
}

/// Everything a VMM needs to know to start one machine. Checked; made by `sandbox`.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Directory of this sandbox (VMDir): sockets, console log, RAM.
    pub dir: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
    /// Kernel parameters that the config adds.
    pub kernel_params: String,
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// File that is the guest's RAM; it exists and has the size `memory`.
    pub ram: PathBuf,
    /// virtio-fs devices, in the order of their PCI slots.
    pub shares: Vec<FsDevice>,
    /// Network devices, in the order of the pod's interfaces.
    pub nics: Vec<NetDevice>,
    /// Where the VMM runs.
    pub placement: Placement,
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// `exit status 1` or `signal 9`.
    pub status: String,
    /// Last lines of its stderr and of the guest's console, for the error that a person reads.
    pub last_words: String,
}

/// What identifies a VMM for a snapshot: a snapshot is restored by the same one only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmIdentity {
    /// `qemu` or `cloud-hypervisor`.
    pub name: String,
    /// Its version, e.g. `11.1.2`.
    pub version: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// CPU model that the guest sees.
    pub cpu: String,
    /// Machine type, e.g. `pc-q35-11.1`.
    pub machine: String,
}

/// One virtual machine. Methods may be called in any order and from any task; each has a deadline of its own and
/// fails with `DeadlineExceeded` at it, or at once with `Unavailable` and the VMM's last words when it is dead.
#[async_trait]
pub trait Vm: Send + Sync + Debug {
    /// Starts the VMM and runs the guest from its kernel.
    async fn boot(&self) -> Result<()>;
    /// Starts the VMM with the guest as the device state in `dir` left it, paused. RAM is in place already.
    async fn restore(&self, dir: &Path) -> Result<()>;
    /// Stops the virtual CPUs; nothing happens if they stand still already.
    async fn pause(&self) -> Result<()>;
    /// Runs the virtual CPUs; nothing happens if they run already.
    async fn resume(&self) -> Result<()>;
    /// Writes the device state, without RAM, into the empty directory `dir` and answers the plain names of the
    /// files. The guest must be paused and stays so.
    async fn save(&self, dir: &Path) -> Result<Vec<String>>;
    /// Connects to the guest agent, again and again until it answers or `deadline` has passed.
    async fn connect_agent(&self, deadline: std::time::Duration) -> Result<UnixStream>;
    /// Kills the VMM and waits until it is reaped. Nothing happens if it never ran.
    async fn stop(&self) -> Result<()>;
    /// Becomes `Some` once, when the VMM process has ended for whatever reason.
    fn death(&self) -> watch::Receiver<Option<Death>>;
    /// Process id of the VMM while it runs.
    fn pid(&self) -> Option<u32>;
    /// What a snapshot of this machine records and a restore compares.
    async fn identity(&self) -> Result<VmmIdentity>;
    /// Last lines of the guest's console, for error texts.
    fn console_tail(&self) -> String;
}

/// Makes machines of one VMM; chosen once per shim by the config and the boot probe.
pub trait Vmm: Send + Sync + Debug {
    /// A machine that does not run yet. What it makes on the host is written into `ledger`.
    fn machine(&self, machine: Machine, ledger: &Arc<Ledger>) -> Arc<dyn Vm>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Owner, Shim};

    #[test]
    fn cloud_hypervisor_runs_the_pods_where_kvm_works_and_qemu_everywhere_else() {
        use config::Accelerator::{Auto, Kvm, Tcg};
        let (all, no_ch) = (Host::with(Some("53.0"), Ok(())), Host::with(None, Ok(())));
        let (old, no_kvm) = (Host::with(Some("51.2"), Ok(())), Host::with(Some("53.0"), Err("no SVM")));
        let (qemu_kvm, qemu_tcg) = (Some(Pick::Qemu(Accelerator::Kvm)), Some(Pick::Qemu(Accelerator::Tcg)));
        let ch = Some(Pick::CloudHypervisor);
        for (vmm, accelerator, host, want) in [
            (VmmChoice::Auto, Auto, &all, ch),
            (VmmChoice::Auto, Kvm, &no_kvm, ch),
            (VmmChoice::Auto, Tcg, &all, qemu_tcg),
            (VmmChoice::Auto, Auto, &no_ch, qemu_kvm),
            (VmmChoice::Auto, Auto, &old, qemu_kvm),
            (VmmChoice::Auto, Auto, &no_kvm, qemu_tcg),
            (VmmChoice::Qemu, Auto, &all, qemu_kvm),
            (VmmChoice::Qemu, Auto, &no_kvm, qemu_tcg),
            (VmmChoice::CloudHypervisor, Auto, &all, ch),
            (VmmChoice::CloudHypervisor, Auto, &no_ch, None),
            (VmmChoice::CloudHypervisor, Auto, &old, None),
            (VmmChoice::CloudHypervisor, Auto, &no_kvm, None),
            (VmmChoice::CloudHypervisor, Kvm, &no_kvm, ch),
        ] {
            let picked = pick(vmm, accelerator, host).ok();
            assert_eq!(picked, want, "{vmm:?} {accelerator:?} {host:?}");
        }
        let error = pick(VmmChoice::CloudHypervisor, Auto, &no_kvm).unwrap_err().chain();
        assert!(error.contains("vmm = \"qemu\"") && error.ends_with("no SVM"), "{error}");
    }

    /// A ledger in `dir`/ledger.
    pub(super) fn ledger(dir: &Path) -> Arc<Ledger> {
        let owner = Owner {
            namespace: "test".into(),
            sandbox: "vm".into(),
            bundle: PathBuf::new(),
            containerd_address: PathBuf::new(),
            ttrpc_address: String::new(),
            shim: Shim::current().unwrap(),
        };
        Arc::new(Ledger::create(&dir.join("ledger"), owner).unwrap())
    }
}
