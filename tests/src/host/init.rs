//! PID 1 of a test host: enters its namespaces, builds its mounts, runs the payload and reaps what is orphaned. Called
//! by `host::main` in the program that `instance.rs` starts.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, wait};

use super::instance::Spec;
use super::{mounts, nested};
use crate::cgroups;

/// Exit code when the test host itself could not be made.
pub(super) const FAILED: i32 = 125;

/// Search path of the payload and of containerd.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn main(spec: Option<OsString>) -> i32 {
    match live(spec) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("test host: {error:#}");
            FAILED
        }
    }
}

fn live(spec: Option<OsString>) -> Result<i32> {
    let path = PathBuf::from(spec.context("The init process was started without its spec")?);
    let text = std::fs::read(&path).with_context(|| format!("Could not read {}", path.display()))?;
    let spec: Spec =
        serde_json::from_slice(&text).with_context(|| format!("Could not read {}", path.display()))?;
    let in_use = File::open(spec.in_use())?;
    let Ok(_in_use) = Flock::lock(in_use, FlockArg::LockSharedNonblock) else {
        bail!("The test host's folder {} is being removed", spec.folder.display());
    };
    let outer_alive = File::open(spec.outer_alive())?;

    for group in &spec.cgroups {
        cgroups::join(group)?;
    }
    if spec.nested {
        end_with(outer_alive);
        return nested::run(&spec);
    }
    nix::sched::unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("Could not enter new namespaces: are you root?")?;
    let hierarchies = cgroups::hierarchies()?;
    mounts::enter(&spec, &hierarchies)?;
    name_and_loopback()?;
    end_with(outer_alive);
    run(&spec)
}

/// Ends the test host with the outer process.
fn end_with(outer_alive: File) {
    std::thread::spawn(move || {
        // Held by the outer process as long as it lives. When PID 1 exits, the kernel ends everything in here.
        if Flock::lock(outer_alive, FlockArg::LockExclusive).is_ok() {
            std::process::exit(FAILED);
        }
    });
}

/// What every machine has.
pub(super) fn name_and_loopback() -> Result<()> {
    nix::unistd::sethostname("testhost").context("Could not set the hostname")?;
    let up = Command::new("/usr/sbin/ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("Could not run ip")?;
    if !up.success() {
        bail!("Could not bring the loopback device up: ip ended with {up}");
    }
    Ok(())
}

/// Runs the payload, and reaps whatever ends meanwhile.
pub(super) fn run(spec: &Spec) -> Result<i32> {
    let program = spec.program.clone().unwrap_or_else(|| PathBuf::from(mounts::PAYLOAD));
    let payload = Command::new(&program)
        .args(&spec.arguments)
        .env("PATH", PATH)
        .env("HOME", "/root")
        .current_dir("/root")
        .spawn()
        .with_context(|| format!("Could not run {} in the test host", program.display()))?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if is(&payload, pid) => return Ok(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if is(&payload, pid) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("Could not wait for the payload"),
        }
    }
}

fn is(child: &std::process::Child, pid: nix::unistd::Pid) -> bool {
    u32::try_from(pid.as_raw()) == Ok(child.id())
}
