//! cgroup v2: one group per container, below `microvm/`. `container` makes, limits, freezes, kills and removes
//! them. Every wait is for an event of the kernel and has a deadline.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_proto::agent::CgroupStats;
use agent_proto::oci::{LinuxDevice, LinuxResources};
use log::warn;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use rustix::fs::{Mode, OFlags, openat};
use tokio::time::{Instant, sleep};

use crate::error::{Context as _, Error, Kind, Result};

mod bpf;
mod devices;
mod events;
mod limits;
mod stats;

pub use events::OomWatch;

/// How long the kernel may take to freeze or end all processes of a group.
const SETTLE: Duration = Duration::from_secs(10);
/// Between two tries to remove a group whose last process has ended but is not released yet; no event tells that.
const RETRY: Duration = Duration::from_millis(5);

/// The group of all containers.
#[derive(Debug)]
pub struct Hierarchy {
    path: PathBuf,
}

/// One container's group.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// The group itself: by its path a late kill could hit a new group of the same name.
    directory: File,
    removed: AtomicBool,
}

impl Hierarchy {
    /// Makes `microvm` below the mount point of cgroup2 and enables every controller there is for its groups.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if `root` is no cgroup2; if the group cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let kind =
            statfs(root).context(|| format!("Could not look at {}", root.display()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            let text = format!("{} is no cgroup2 file system: mount one there first", root.display());
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        let path = root.join("microvm");
        make_dir(&path).context(|| format!("Could not make cgroup {}", path.display()))?;
        enable_controllers(root);
        enable_controllers(&path);
        Ok(Self { path })
    }

    /// Makes the group `id`. One that a failed removal has left is made anew if no process is in it.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`] if processes are in it; [`Kind::InvalidArgument`] for an id that is no file name.
    pub fn create(&self, id: &str) -> Result<Cgroup> {
        if id.is_empty() || id.starts_with('.') || id.contains('/') {
            let text = format!(
                "Could not name a cgroup {id:?}: an id is a file name that does not begin with a dot"
            );
            return Err(Error::new(Kind::InvalidArgument, text));
        }
        let path = self.path.join(id);
        if path.is_dir() {
            remove_tree(&path).map_err(|error| {
                Error::caused(Kind::AlreadyExists, format!("Cgroup {} is in use", path.display()), error)
            })?;
        }
        let make = || fs::create_dir(&path).and_then(|()| File::open(&path));
        let directory = make().context(|| format!("Could not make cgroup {}", path.display()))?;
        Ok(Cgroup { path, directory, removed: AtomicBool::new(false) })
    }
}

impl Cgroup {
    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
    /// [`Kind::DeadlineExceeded`] if one does not stop.
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

/// Writes a control file; never makes one, so that a missing control is an error.
fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// One by one: the kernel refuses a whole list for one controller that is in use elsewhere.
fn enable_controllers(group: &Path) {
    let offered = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in offered.split_whitespace() {
        if let Err(error) = write(&group.join("cgroup.subtree_control"), &format!("+{controller}")) {
            warn!("Could not enable cgroup controller {controller} in {}: {error}", group.display());
        }
    }
}

/// Removes a group and those below it, deepest first. Gone already is success.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if gone(&error) => return Ok(()),
        result => result?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;
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
