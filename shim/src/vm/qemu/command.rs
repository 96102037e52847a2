//! QEMU's command line: a machine with nothing but what a pod needs. Pure; called by [`super::Qemu`] only.
//!
//! Every device has a fixed place on the bus by its role. A snapshot's device state names devices by their place, so
//! source and target agree as long as they have the same number of shares and network devices.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::{AGENT_PORT, Accelerator};
use crate::error::{Error, Kind, Result};
use crate::vm::Machine;

/// Slot of the virtio-serial controller: console and agent port.
const SERIAL: usize = 0x02;
/// Slot of the first virtio-fs device, and how many there may be.
const SHARES: (usize, usize) = (0x08, 8);
/// Slot of the first network device, and how many there may be; slot 0x1f is the chipset's.
const NICS: (usize, usize) = (0x10, 15);
/// virtio's name for a tag has this many bytes.
const TAG: usize = 36;

/// How QEMU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Runs the guest from its kernel.
    Boot,
    /// Waits, stopped, for a device state.
    Restore,
}

/// Whose CPUs a QEMU runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// The one that this program is for; a pod runs its host's.
    pub(super) const HOST: Self =
        if cfg!(target_arch = "aarch64") { Architecture::Arm64 } else { Architecture::Amd64 };

    /// The machine type of QEMU `major`.`minor`, with its number.
    pub(super) fn machine(self, major: &str, minor: &str) -> String {
        let family = match self {
            Architecture::Amd64 => "pc-q35",
            Architecture::Arm64 => "virt",
        };
        format!("{family}-{major}.{minor}")
    }
}

/// What is the same for all machines of one QEMU.
#[derive(Debug, Clone)]
pub(super) struct Flavour {
    pub(super) architecture: Architecture,
    pub(super) accelerator: Accelerator,
    /// Machine type with its version.
    pub(super) machine: String,
}

/// The arguments that make `machine`. `monitor` is the number of an inherited socket that will speak QMP; the agent's
/// port listens at `agent`.
pub(super) fn arguments(
    machine: &Machine,
    flavour: &Flavour,
    start: Start,
    monitor: RawFd,
    agent: &Path,
) -> Result<Vec<String>> {
    check(machine)?;
    let mut line = Line::default();
    base(&mut line, machine, flavour);
    line.option("chardev", format!("socket,id=monitor,fd={monitor}"));
    line.option("qmp", "chardev:monitor");
    kernel(&mut line, machine, flavour)?;
    serial(&mut line, agent)?;
    for (number, share) in machine.shares.iter().enumerate() {
        line.option("chardev", format!("socket,id=share{number},path={}", path(&share.socket)?));
        let device = format!(
            "vhost-user-fs-pci,id=fs{number},chardev=share{number},tag={},queue-size=1024",
            share.tag
        );
        line.device(SHARES.0 + number, &device);
    }
    for (number, nic) in machine.nics.iter().enumerate() {
        // In the kernel where there is a fast path for it; emulated CPUs gain nothing from that.
        let vhost = if flavour.accelerator == Accelerator::Kvm { "on" } else { "off" };
        let tap = &nic.tap;
        line.option(
            "netdev",
            format!("tap,id=net{number},ifname={tap},script=no,downscript=no,vhost={vhost}"),
        );
        let device = format!(
            "virtio-net-pci,id=nic{number},netdev=net{number},mac={},romfile=,disable-legacy=on",
            nic.mac
        );
        line.device(NICS.0 + number, &device);
    }
    if start == Start::Restore {
        line.flag("S");
        line.option("incoming", "defer");
    }
    Ok(line.0)
}

/// Kernel parameters of every guest: the console and the agent's channel are ours, a panic ends the machine at once.
fn parameters(flavour: &Flavour, more: &str) -> String {
    // Debian's kernel would test its ciphers at each boot.
    let mut all =
        "console=hvc0 quiet panic=-1 microvm.agent=serial cgroup_no_v1=all cryptomgr.notests".to_owned();
    if flavour.architecture == Architecture::Amd64 {
        // A reset through the keyboard controller is at once; ACPI is tried first otherwise.
        all += " reboot=k";
    }
    if flavour.accelerator == Accelerator::Tcg {
        // An emulated CPU speculates nothing, but pays for every mitigation.
        all += " mitigations=off";
    }
    if (flavour.architecture, flavour.accelerator) == (Architecture::Amd64, Accelerator::Tcg) {
        // Emulation is too slow at times for the kernel's checks of its own timers, and translates all code anew that
        // the kernel patches for a single CPU (docs/decisions/0002-guest-kernel.md has the figures).
        all += " no_timer_check tsc=reliable noreplace-smp";
    }
    if !more.is_empty() {
        all.push(' ');
        all += more;
    }
    all
}

fn base(line: &mut Line, machine: &Machine, flavour: &Flavour) {
    let cpu = flavour.accelerator.cpu();
    let accelerator = flavour.accelerator.name();
    // No disks, no SMBus, no VMware's port, no timer that a Linux guest would not use.
    let chipset = match flavour.architecture {
        Architecture::Amd64 => ",sata=off,smbus=off,vmport=off,hpet=off",
        Architecture::Arm64 => ",gic-version=max",
    };
    line.flag("no-user-config");
    line.flag("nodefaults");
    line.flag("no-reboot");
    line.option("display", "none");
    line.option("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    line.option("name", "microvm,debug-threads=on");
    line.option(
        "machine",
        format!("{},accel={accelerator},memory-backend=mem,dump-guest-core=off{chipset}", flavour.machine),
    );
    line.option("cpu", cpu);
    line.option("smp", machine.vcpus.to_string());
    line.option("m", format!("size={}B", machine.memory));
}

fn kernel(line: &mut Line, machine: &Machine, flavour: &Flavour) -> Result<()> {
    let memory = machine.memory;
    let ram = path(&machine.ram)?;
    line.option("object", format!("memory-backend-file,id=mem,size={memory},mem-path={ram},share=on"));
    line.option("kernel", plain(&machine.kernel)?);
    line.option("initrd", plain(&machine.initramfs)?);
    line.option("append", parameters(flavour, &machine.kernel_params));
    Ok(())
}

fn serial(line: &mut Line, agent: &Path) -> Result<()> {
    line.device(SERIAL, "virtio-serial-pci,id=serial,max_ports=2,disable-legacy=on");
    // QEMU's own stdout, which is a pipe into our bounded log.
    line.option("chardev", "stdio,id=console,signal=off");
    line.option("device", "virtconsole,chardev=console,bus=serial.0,nr=0");
    line.option("chardev", format!("socket,id=agent,path={},server=on,wait=off", path(agent)?));
    line.option("device", format!("virtserialport,chardev=agent,name={AGENT_PORT},bus=serial.0,nr=1"));
    Ok(())
}

/// Refuses what would not fit, or would mean something else on QEMU's command line.
fn check(machine: &Machine) -> Result<()> {
    let refuse = |text: String| Err(Error::new(Kind::InvalidArgument, text));
    for (what, count, most) in
        [("shares", machine.shares.len(), SHARES.1), ("network devices", machine.nics.len(), NICS.1)]
    {
        if count > most {
            return refuse(format!("A machine can't have {count} {what}; {most} is the most"));
        }
    }
    let is_word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    for share in &machine.shares {
        if !is_word(&share.tag) || share.tag.len() > TAG {
            return refuse(format!("{:?} is no tag of a virtio-fs device", share.tag));
        }
    }
    for nic in &machine.nics {
        if !is_word(&nic.tap) || !is_word(&nic.mac) {
            return refuse(format!("{:?} with {:?} is no network device", nic.tap, nic.mac));
        }
    }
    Ok(())
}

/// A path as it stands alone in an argument.
fn plain(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|_| path.is_absolute());
    text.map(ToOwned::to_owned).ok_or_else(|| {
        let text =
            format!("QEMU can't be given the path {}: it is not absolute or not UTF-8", path.display());
        Error::new(Kind::InvalidArgument, text)
    })
}

/// A path as part of a list of options, where a comma is written twice.
fn path(path: &Path) -> Result<String> {
    Ok(plain(path)?.replace(',', ",,"))
}

/// The arguments so far.
#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(format!("-{name}"));
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into());
    }

    /// A device in `slot` of the root bus.
    fn device(&mut self, slot: usize, device: &str) {
        self.option("device", format!("{device},bus=pcie.0,addr={slot:#x}"));
    }
}

/// Where the agent's port listens.
pub(super) fn agent_socket(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{FsDevice, NetDevice, Placement};

    fn machine() -> Machine {
        Machine {
            dir: "/run/microvm/k8s.io/p1".into(),
            kernel: "/usr/share/microvm/guest/vmlinux".into(),
            initramfs: "/usr/share/microvm/guest/initramfs".into(),
            kernel_params: "microvm.debug".into(),
            vcpus: 2,
            memory: 256 << 20,
            ram: "/run/microvm/k8s.io/p1/ram/mem".into(),
            shares: vec![
                FsDevice { tag: "kataShared".into(), socket: "/run/microvm/k8s.io/p1/images.sock".into() },
                FsDevice { tag: "volumes".into(), socket: "/run/microvm/k8s.io/p1/volumes,1.sock".into() },
            ],
            nics: vec![NetDevice { tap: "microvm-tap0".into(), mac: "02:00:00:00:00:07".into() }],
            placement: Placement::default(),
        }
    }

    fn of(machine: &Machine, accelerator: Accelerator, start: Start) -> Result<Vec<String>> {
        let flavour =
            Flavour { architecture: Architecture::Amd64, accelerator, machine: "pc-q35-11.1".into() };
        arguments(machine, &flavour, start, 7, &agent_socket(&machine.dir))
    }

    /// One option with its value on each line.
    fn shown(arguments: &[String]) -> String {
        arguments.join(" ").replace(" -", "\n-")
    }

    #[test]
    fn a_machine_to_boot_by_emulation() {
        let line = of(&machine(), Accelerator::Tcg, Start::Boot).unwrap();
        insta::assert_snapshot!(shown(&line));
    }

    #[test]
    fn an_arm64_machine_to_boot_with_kvm() {
        let architecture = Architecture::Arm64;
        let flavour =
            Flavour { architecture, accelerator: Accelerator::Kvm, machine: architecture.machine("11", "1") };
        let machine = machine();
        let line = arguments(&machine, &flavour, Start::Boot, 7, &agent_socket(&machine.dir)).unwrap();
        insta::assert_snapshot!(shown(&line));
    }

    #[test]
    fn kvm_changes_the_cpu_the_parameters_and_the_network_only() {
        let tcg = of(&machine(), Accelerator::Tcg, Start::Boot).unwrap();
        let kvm = of(&machine(), Accelerator::Kvm, Start::Boot).unwrap();
        let differences: Vec<_> =
            kvm.iter().zip(&tcg).filter(|(kvm, tcg)| kvm != tcg).map(|(kvm, _)| kvm).collect();
        let [machine, cpu, append, netdev] = &differences[..] else { panic!("{differences:?}") };
        assert!(machine.contains(",accel=kvm,"));
        assert_eq!(*cpu, "host");
        assert!(!append.contains("mitigations=off"), "a real CPU needs its mitigations");
        assert!(netdev.ends_with(",vhost=on"));
    }

    #[test]
    fn restoring_adds_to_the_same_machine_and_changes_nothing() {
        let boot = of(&machine(), Accelerator::Tcg, Start::Boot).unwrap();
        let restore = of(&machine(), Accelerator::Tcg, Start::Restore).unwrap();
        assert_eq!(restore[..boot.len()], boot[..]);
        assert_eq!(restore[boot.len()..], ["-S", "-incoming", "defer"]);
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        let line = of(&machine(), Accelerator::Tcg, Start::Boot).unwrap();
        assert!(line.iter().any(|value| value.ends_with("path=/run/microvm/k8s.io/p1/volumes,,1.sock")));
    }

    #[test]
    fn what_does_not_fit_or_would_inject_options_is_refused() {
        let nic = machine().nics[0].clone();
        let refused = |change: &dyn Fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            let error = of(&machine, Accelerator::Tcg, Start::Boot).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            error.chain()
        };
        assert_eq!(
            refused(&|machine| machine.nics = vec![nic.clone(); 16]),
            "A machine can't have 16 network devices; 15 is the most"
        );
        refused(&|machine| machine.nics[0].mac = "02:00:00:00:00:07,romfile=/etc/shadow".into());
        refused(&|machine| machine.nics[0].tap = "tap0,script=/bin/sh".into());
        refused(&|machine| machine.shares[0].tag = "x".repeat(37));
        refused(&|machine| machine.shares[0].tag = "a,b".into());
        refused(&|machine| machine.kernel = "vmlinux".into());
    }
}
