//! PID 1 of a test host that is a virtual machine. Called by `host::main` in the program that the kernel starts.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::sys::reboot::{RebootMode, reboot};

use super::super::init::{FAILED, name_and_loopback, run};
use super::super::instance::Spec;
use super::super::{LOGS, MODULES, mounts};
use super::{EXIT_CODE, LOGS_TAG, SPEC};

pub(in crate::host) fn main() -> ! {
    let code = match live() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("test host: {error:#}");
            FAILED
        }
    };
    let result = Path::new(LOGS).join(EXIT_CODE);
    if let Err(error) = fs::write(&result, code.to_string()) {
        eprintln!("test host: could not write {}: {error}", result.display());
    }
    nix::unistd::sync();
    let never: nix::Result<Infallible> = reboot(RebootMode::RB_POWER_OFF);
    // The kernel panics when PID 1 ends, which ends the machine as well.
    panic!("could not power off: {never:?}")
}

fn live() -> Result<i32> {
    modules()?;
    mounts::enter_machine(LOGS_TAG)?;
    name_and_loopback()?;
    let text = fs::read(SPEC).with_context(|| format!("Could not read {SPEC}"))?;
    let spec: Spec = serde_json::from_slice(&text).with_context(|| format!("Could not read {SPEC}"))?;
    run(&spec)
}

/// Loads the kernel's modules, which come in an order in which each finds what it needs.
fn modules() -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(MODULES)
        .with_context(|| format!("Could not read {MODULES}"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    for file in files {
        let module = File::open(&file)?;
        finit_module(&module, c"", ModuleInitFlags::empty())
            .with_context(|| format!("Could not load the module {}", file.display()))?;
    }
    Ok(())
}
