//! One test host seen from outside: its folders, its cgroups, its init process, and the removal of all of it. Called by
//! `host::run`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{INIT_ARGUMENT, Payload};
use crate::cgroups;

/// Held shared by both processes of a live test host: whoever gets it exclusively may remove the folder.
const IN_USE: &str = "in-use";
/// Held by the outer process; the init process waits for it, and so learns of the outer process' death.
const OUTER_ALIVE: &str = "outer-alive";

/// What the init process is told, as JSON in `spec.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    /// The read-only Debian tree.
    pub(super) tree: PathBuf,
    /// This test host's own folder.
    pub(super) folder: PathBuf,
    /// Folder of logs that outlives the test host.
    pub(super) logs: PathBuf,
    /// One folder in each cgroup hierarchy of the machine.
    pub(super) cgroups: Vec<PathBuf>,
    /// Program to run, a path of this machine, mounted into the test host.
    pub(super) own_program: PathBuf,
    /// Program of the tree to run instead.
    pub(super) program: Option<PathBuf>,
    pub(super) arguments: Vec<std::ffi::OsString>,
    /// Whether it is a virtual machine.
    pub(super) nested: bool,
}

impl Spec {
    pub(super) fn outer_alive(&self) -> PathBuf {
        self.folder.join(OUTER_ALIVE)
    }

    pub(super) fn in_use(&self) -> PathBuf {
        self.folder.join(IN_USE)
    }
}

/// A test host's folder and cgroups. [`Instance::remove`] takes them away; what a killed caller left is taken away by
/// the next caller.
#[derive(Debug)]
pub(super) struct Instance {
    spec: Spec,
    locks: Vec<Flock<File>>,
}

impl Instance {
    pub(super) fn create(home: &Path, tree: &Path, payload: &Payload) -> Result<Instance> {
        let running = home.join("run");
        fs::create_dir_all(&running).with_context(|| format!("Could not make {}", running.display()))?;
        sweep(&running)?;
        let own = std::process::id().to_string();
        let spec = Spec {
            tree: tree.to_owned(),
            folder: running.join(&own),
            logs: home.join("logs").join(&payload.name),
            cgroups: cgroups::own_folders()?.iter().map(|folder| folder.join(group_name(&own))).collect(),
            own_program: std::env::current_exe().context("Could not find the own program")?,
            program: payload.program.clone(),
            arguments: payload.arguments.clone(),
            nested: payload.nested,
        };
        if spec.logs.exists() {
            fs::remove_dir_all(&spec.logs).context("Could not remove the logs of the last run")?;
        }
        for folder in ["upper", "work", "root", "containerd"] {
            fs::create_dir_all(spec.folder.join(folder))?;
        }
        fs::create_dir_all(&spec.logs)?;
        let locks = vec![
            lock(&spec.in_use(), FlockArg::LockSharedNonblock)?,
            lock(&spec.outer_alive(), FlockArg::LockExclusiveNonblock)?,
        ];
        let instance = Instance { spec, locks };
        instance.fill(payload)?;
        Ok(instance)
    }

    fn fill(&self, payload: &Payload) -> Result<()> {
        if let Some(installed) = &payload.installed {
            let status = Command::new("cp")
                .args(["-a", "--no-preserve=ownership", "-T"])
                .args([installed, &self.spec.folder.join("upper")])
                .status()
                .context("Could not run cp")?;
            if !status.success() {
                bail!("Could not copy {} into the test host", installed.display());
            }
        }
        for (source, target) in &payload.files {
            let target = self.spec.folder.join("upper").join(target.strip_prefix("/").unwrap_or(target));
            let what = || format!("Could not lay {} into the test host", source.display());
            fs::create_dir_all(target.parent().unwrap_or(&target)).with_context(what)?;
            fs::copy(source, &target).with_context(what)?;
        }
        for cgroup in &self.spec.cgroups {
            cgroups::create(cgroup)?;
        }
        let spec = self.spec.folder.join("spec.json");
        fs::write(&spec, serde_json::to_vec_pretty(&self.spec)?)
            .with_context(|| format!("Could not write {}", spec.display()))
    }

    /// Runs the payload and returns its exit code (128 + the signal's number if one ended it).
    pub(super) fn run(&self, payload: &Payload) -> Result<i32> {
        // Ctrl-C reaches the payload as well; this process stays to clean up.
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--pid", "--fork", "--kill-child"])
            .arg(&self.spec.own_program)
            .arg(INIT_ARGUMENT)
            .arg(self.spec.folder.join("spec.json"));
        let status = unshare.status().context("Could not run unshare, of the package util-linux")?;
        match status.code() {
            Some(code) => Ok(code),
            None => bail!("The test host {} ended with {status}", payload.name),
        }
    }

    /// Removes the folder and the cgroups. The logs stay.
    pub(super) fn remove(self) -> Result<()> {
        drop(self.locks);
        remove(&self.spec.folder, &self.spec.cgroups)
    }
}

fn group_name(id: &str) -> String {
    format!("microvm-testhost-{id}")
}

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>> {
    let file = File::create(path).with_context(|| format!("Could not make {}", path.display()))?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(lock),
        Err((_, error)) => Err(error).with_context(|| format!("Could not lock {}", path.display())),
    }
}

/// Removes test hosts of which no process is left.
fn sweep(running: &Path) -> Result<()> {
    for entry in fs::read_dir(running)? {
        let folder = entry?.path();
        // A folder whose lock is taken is alive; one that vanishes meanwhile was swept by somebody else.
        let Ok(_lock) = lock(&folder.join(IN_USE), FlockArg::LockExclusiveNonblock) else { continue };
        let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let groups: Vec<PathBuf> =
            cgroups::own_folders()?.iter().map(|parent| parent.join(group_name(&id))).collect();
        remove(&folder, &groups)?;
    }
    Ok(())
}

/// The kernel may still be ending the last processes of the pid namespace, so that a cgroup stays busy for a moment.
fn remove(folder: &Path, groups: &[PathBuf]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    for group in groups {
        cgroups::remove_tree(group, deadline)?;
    }
    fs::remove_dir_all(folder)
        .with_context(|| format!("Could not remove the test host's folder {}", folder.display()))
}
