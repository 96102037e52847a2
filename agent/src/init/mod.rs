//! What PID 1 does before it can serve, called by `main.rs` alone, while there is only one thread.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, setrlimit};

use crate::error::{Context as _, Result};
use params::Params;

pub mod console;
mod modules;
mod mounts;
pub mod params;
mod root;

/// Open files that the agent, and with it any container, may ask for: the kernel's own ceiling (fs.nr_open).
const FILES: u64 = 1024 * 1024;

/// Makes of an initramfs that has just started the agent a place where containers can run: a root that
/// pivot_root accepts, the kernel's file systems, the log, modules, cgroup controllers.
///
/// # Errors
/// Only where nothing could run after it; what a guest can do without is logged.
pub fn boot() -> Result<Params> {
    root::leave_initramfs()?;
    mounts::mount_all()?;
    let line = fs::read_to_string("/proc/cmdline").context(|| "Could not read the kernel's command line")?;
    let params = Params::parse(&line);
    console::start(params.log)?;
    for problem in &params.problems {
        log::warn!("Kernel command line: {problem}");
    }
    modules::load_all(Path::new("/modules"))?;
    mounts::enable_controllers(Path::new("/sys/fs/cgroup"))?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).context(|| "Could not raise the limit of open files")?;
    // Kubernetes' nodes promise memory freely and leave it to the OOM killer, group by group; so does this one.
    fs::write("/proc/sys/vm/overcommit_memory", "1").context(|| "Could not let memory be overcommitted")?;
    nix::unistd::sethostname("localhost").context(|| "Could not set a hostname")?;
    Ok(params)
}

/// Ends the guest: powers the VM off. Only if the kernel refuses does it return, and PID 1 must end then.
pub fn power_off() {
    // Volumes may hold what containers wrote last; the guest has no disk of its own.
    nix::unistd::sync();
    let Err(error) = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    log::error!("Could not power the VM off: {error}");
}
