//! Whether KVM works, found out by booting a kernel under it until it panics. Called by the examination of a host.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::super::process::place;
use super::super::{Placement, console};
use crate::error::{Context, Error, Kind, Result};

/// The kernel was decompressed, has found its devices, and wants a root filesystem that it is not given.
const PROOF: &[u8] = b"Kernel panic - not syncing";
/// How much of what a kernel prints is kept.
const KEPT: usize = 4096;

/// Boots `kernel` under KVM by the VMM at `program`, without anything else, until it panics over that.
pub(super) async fn boot(vmm: Vmm, program: &Path, kernel: &Path, deadline: Duration) -> Result<()> {
    let mut command = Command::new(program);
    vmm.arguments(&mut command, kernel);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    place(&mut command, &Placement::default(), Vec::new())?;
    die_with_us(&mut command);
    let what = || format!("KVM does not boot {}", kernel.display());
    let mut child = command.spawn().context(|| format!("Could not start {}", program.display()))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::new(Kind::Internal, what()));
    };
    let errors = tokio::spawn(console::keep_last(stderr));
    let seen = timeout(deadline, prints_proof(stdout)).await;
    let failure = match seen {
        Ok(Ok(())) => None,
        Ok(Err(output)) => Some(output),
        Err(_) => {
            let _ = child.kill().await;
            let text = format!("{}: nothing happened for {deadline:?}", what());
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
    };
    let Some(output) = failure else {
        let _ = child.kill().await;
        return Ok(());
    };
    let status =
        timeout(deadline, child.wait()).await.map_err(std::io::Error::from).flatten().context(what)?;
    let errors = errors.await.unwrap_or_default();
    let words = console::last_lines(if errors.is_empty() { &output } else { &errors });
    let text = format!("{}: {} has ended with {status}: {words}", what(), vmm.name());
    Err(Error::new(Kind::FailedPrecondition, text))
}

/// No ledger knows of the probe's machine, so the kernel ends it when the process that asked is killed.
fn die_with_us(command: &mut Command) {
    let parent = getpid();
    let prepare = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // It may be too late for the signal already.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
    };
    // SAFETY: two system calls that take and answer integers; nothing is allocated.
    unsafe { command.pre_exec(prepare) };
}

/// Reads until the proof has come; the last of what was read instead.
async fn prints_proof(mut output: impl AsyncRead + Unpin) -> Result<(), Vec<u8>> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        if kept.windows(PROOF.len()).any(|window| window == PROOF) {
            return Ok(());
        }
        kept.drain(..kept.len().saturating_sub(KEPT));
    }
    Err(kept)
}

/// Who boots the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vmm {
    Qemu,
    CloudHypervisor,
}

impl Vmm {
    fn name(self) -> &'static str {
        match self {
            Vmm::Qemu => "QEMU",
            Vmm::CloudHypervisor => "Cloud Hypervisor",
        }
    }

    fn arguments(self, command: &mut Command, kernel: &Path) {
        let arm = cfg!(target_arch = "aarch64");
        let uart = if arm { "ttyAMA0" } else { "ttyS0" };
        match self {
            Vmm::Qemu => {
                let machine = if arm { "virt,gic-version=max" } else { "q35" };
                command
                    .args(["-no-user-config", "-nodefaults", "-no-reboot", "-display", "none"])
                    .args(["-serial", "stdio", "-machine", machine, "-accel", "kvm", "-cpu", "host"])
                    .args(["-m", "128M", "-kernel"])
                    .arg(kernel)
                    .args(["-append", &format!("console={uart} quiet panic=-1 reboot=k")]);
            }
            Vmm::CloudHypervisor => {
                // It would boot a kernel that resets again and again, so the kernel stays where it is.
                command
                    .args([
                        "--cpus",
                        "boot=1",
                        "--memory",
                        "size=128M",
                        "--serial",
                        "tty",
                        "--console",
                        "off",
                    ])
                    .arg("--kernel")
                    .arg(kernel)
                    .args(["--cmdline", &format!("console={uart} quiet panic=0")]);
            }
        }
    }
}
