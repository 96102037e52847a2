//! cgroup v2: one group per container, below `microvm/`. `container` makes, limits, freezes, kills and removes
//! them. Every wait is for an event of the kernel and has a deadline.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_proto::agent::CgroupStats;
use agent_proto::oci::{LinuxDevice, LinuxResources};
use rustix::fs::{Mode, OFlags, openat};
use tokio::time::{Instant, sleep};

use crate::error::{Context as _, Result};

mod bpf;
mod devices;
mod events;
mod files;
mod hierarchy;
mod limits;
mod stats;

pub use events::OomWatch;
pub use hierarchy::Hierarchy;

use files::{gone, name_of_process, remove_tree, write};

/// How long the kernel may take to freeze or end all processes of a group.
const SETTLE: Duration = Duration::from_secs(10);
/// Between two tries to remove a group whose last process has ended but is not released yet; no event tells that.
const RETRY: Duration = Duration::from_millis(5);

/// One container's group.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// The group itself: by its path a late kill could hit a new group of the same name.
    directory: File,
    removed: AtomicBool,
    /// The group's name in `/proc/<pid>/cgroup`.
    name: OnceLock<String>,
}

impl Cgroup {
    fn new(path: PathBuf, directory: File) -> Self {
        Self { path, directory, removed: AtomicBool::new(false), name: OnceLock::new() }
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Learns how the kernel names this group, from a process that is in it and has not run a program yet.
    pub fn remember_place_of(&self, pid: i32) {
        if let Some(name) = name_of_process(pid) {
            self.name.get_or_init(|| name);
        }
    }

    /// The group that a process of this container is in: an init system in it moves itself into one below, and the kernel
    /// then takes no more processes into the one above.
    #[must_use]
    pub fn place_of(&self, pid: i32) -> PathBuf {
        let current = name_of_process(pid);
        let below = || Path::new(current.as_deref()?).strip_prefix(self.name.get()?).ok();
        below().map_or_else(|| self.path.clone(), |below| self.path.join(below))
    }

    /// Sets the limits that `resources` names; one the kernel does not offer is skipped with a warning.
    ///
    /// # Errors
    /// A value that the kernel refuses.
    pub fn limit(&self, resources: &LinuxResources) -> Result<()> {
        limits::settings(resources).iter().try_for_each(|setting| setting.apply(&self.path))
    }

    /// Restricts device nodes to what the rules and the defaults of every container allow.
    ///
    /// # Errors
    /// A malformed rule, or the kernel refuses the program.
    pub fn restrict_devices(&self, resources: &LinuxResources, nodes: &[LinuxDevice]) -> Result<()> {
        let program = devices::program(&devices::rules(&resources.Devices, nodes)?);
        bpf::attach_device_program(&self.path, &program)
            .context(|| format!("Could not attach the device rules to cgroup {}", self.path.display()))
    }

    /// What its processes have used. Controllers that are missing count as nothing.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn stats(&self) -> Result<CgroupStats> {
        stats::read(&self.path)
    }

    /// Watches for processes killed for want of memory; `None` without a memory controller.
    ///
    /// # Errors
    /// If the events cannot be watched.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        OomWatch::open(&self.path)
    }

    /// Freezes all processes and waits until they stand still. On failure they run again. Deadline 10 s.
    ///
    /// # Errors
    /// `Kind::DeadlineExceeded` if one does not stop.
    pub async fn freeze(&self) -> Result<()> {
        self.set("cgroup.freeze", "1")?;
        let frozen = events::until(&self.path, "frozen", true, SETTLE).await;
        if frozen.is_err() {
            self.set("cgroup.freeze", "0")?;
        }
        frozen
    }

    /// Thaws all processes. Deadline 10 s.
    ///
    /// # Errors
    /// If the kernel does not say in time that they run.
    pub async fn thaw(&self) -> Result<()> {
        self.set("cgroup.freeze", "0")?;
        events::until(&self.path, "frozen", false, SETTLE).await
    }

    /// Sends SIGKILL to every process, frozen or not, however fast it forks.
    ///
    /// # Errors
    /// If the kernel refuses; a group that is gone is no failure.
    pub fn kill(&self) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let kill =
            || File::from(openat(&self.directory, "cgroup.kill", flags, Mode::empty())?).write_all(b"1");
        match kill() {
            Err(error) if !gone(&error) => Err(error)
                .context(|| format!("Could not kill the processes of cgroup {}", self.path.display())),
            _ => Ok(()),
        }
    }

    /// Kills what runs and removes the group with those made below it. Deadline 10 s; gone already is no failure.
    ///
    /// # Errors
    /// If a process outlives SIGKILL until the deadline.
    pub async fn remove(&self) -> Result<()> {
        if self.removed.load(Ordering::Acquire) {
            return Ok(());
        }
        let deadline = Instant::now() + SETTLE;
        self.kill()?;
        events::until(&self.path, "populated", false, SETTLE).await?;
        loop {
            match remove_tree(&self.path) {
                Ok(()) => {
                    self.removed.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    sleep(RETRY).await;
                }
                Err(error) => {
                    return Err(error).context(|| format!("Could not remove cgroup {}", self.path.display()));
                }
            }
        }
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        write(&path, value).context(|| format!("Could not write {value:?} to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::fs;
    use std::process::{Child, Command};

    /// A root of the test's own, in the cgroup2 of the machine it runs on: alone, or beside v1.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let unified = Path::new("/sys/fs/cgroup/unified");
            let all = if unified.is_dir() { unified } else { Path::new("/sys/fs/cgroup") };
            let path = all.join(format!("agent-unit-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let left = remove_tree(&self.0);
            assert!(std::thread::panicking() || left.is_ok(), "{left:?}");
        }
    }

    fn sleeper(group: &Cgroup) -> Child {
        let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        write(&group.path().join("cgroup.procs"), &child.id().to_string()).unwrap();
        child
    }

    #[test]
    fn only_cgroup2_and_plain_names_are_accepted() {
        assert_eq!(Hierarchy::open(Path::new("/")).unwrap_err().kind(), Kind::InvalidArgument);
        let place = Place::new("names");
        let all = Hierarchy::open(&place.0).unwrap();
        for id in ["", ".", "..", "a/b"] {
            assert_eq!(all.create(id).unwrap_err().kind(), Kind::InvalidArgument, "{id:?}");
        }
    }

    #[tokio::test]
    async fn freezes_thaws_kills_and_goes_with_groups_below_it() {
        let place = Place::new("freeze");
        let all = Hierarchy::open(&place.0).unwrap();
        let group = all.create("one").unwrap();
        let mut child = sleeper(&group);
        fs::create_dir(group.path().join("below")).unwrap();
        assert_eq!(all.create("one").unwrap_err().kind(), Kind::AlreadyExists);
        group.freeze().await.unwrap();
        let events = fs::read_to_string(group.path().join("cgroup.events")).unwrap();
        assert!(events.contains("frozen 1"), "{events}");
        group.thaw().await.unwrap();
        group.freeze().await.unwrap();
        group.kill().unwrap();
        // Only a reaped process leaves its group, and only the test can reap this one.
        let reaped = tokio::task::spawn_blocking(move || child.wait());
        group.remove().await.unwrap();
        assert!(!reaped.await.unwrap().unwrap().success());
        assert!(!group.path().exists());
        // Whoever holds on to the old group does not touch a new one of its name.
        let again = all.create("one").unwrap();
        let mut child = sleeper(&again);
        group.kill().unwrap();
        group.remove().await.unwrap();
        assert!(child.try_wait().unwrap().is_none());
        again.kill().unwrap();
        child.wait().unwrap();
        again.remove().await.unwrap();
    }
}
