//! What a pod may leave behind: everything is listed before and after, and the difference must be nothing. Called by the
//! demo and every end-to-end test, inside the test host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{cgroups, programs};

/// How long what was told to end may take to be gone.
const DEADLINE: Duration = Duration::from_secs(10);

/// Folders whose whole content is compared, with the depth to which it is.
const FOLDERS: &[(&str, usize)] = &[
    ("/dev/shm", 8),
    ("/run/containerd", 4),
    ("/run/microvm", 8),
    ("/run/netns", 2),
    ("/run/runc", 8),
    ("/tmp", 2),
    ("/var/lib/cni", 4),
    ("/var/lib/containerd/io.containerd.grpc.v1.cri", 3),
    ("/var/lib/containerd/io.containerd.runtime.v2.task", 3),
    ("/var/lib/microvm", 4),
];

/// Made by containerd, runc or CNI with the first pod and kept by them.
const KEPT: &[&str] = &[
    // The node's, made once: the probe's answer, the namespaces' directories, the store.
    "/run/microvm/.vmm.json",
    "/run/microvm/.vmm.lock",
    "/run/microvm/.templates",
    "/run/microvm/default",
    "/run/microvm/k8s.io",
    "/var/lib/microvm/snapshots",
    "/var/lib/microvm/snapshots/.lock",
    TEMPLATES,
    "/run/containerd/fifo",
    "/run/containerd/io.containerd.grpc.v1.cri/containers",
    "/run/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/containerd/io.containerd.runtime.v2.task/default",
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
    "/run/containerd/runc",
    "/run/containerd/runc/default",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/s",
    "/run/microvm",
    "/run/netns",
    "/var/lib/cni/networks",
    "/var/lib/cni/networks/pods",
    "/var/lib/cni/networks/pods/last_reserved_ip.0",
    "/var/lib/cni/networks/pods/lock",
    "/var/lib/cni/results",
    "/var/lib/containerd/io.containerd.grpc.v1.cri/containers",
    "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/var/lib/containerd/io.containerd.runtime.v2.task/default",
    "/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io",
];

/// The node's templates, which outlive the pods that had them made.
pub const TEMPLATES: &str = "/var/lib/microvm/templates";

/// Longest wait for a template that is being made, with what CPU pods leave.
const TEMPLATE_DEADLINE: Duration = Duration::from_secs(60);

/// Cgroups that runtimes make as parents and keep, by their path in a hierarchy. (`/kubepods` is the caller's: a pod's
/// own parent below it is kubelet's to remove.)
const KEPT_CGROUPS: &[&str] = &["default", "k8s.io", "kubepods"];

/// What tmpfs may hold more than before, in bytes: logs and caches that containerd and CNI keep in `/run`. A pod's memory
/// is a hundred times that.
const KEPT_TMPFS: u64 = 1 << 20;

/// The bridge, which stays when its first pod has gone.
const KEPT_LINKS: &[&str] = &["cni0"];

/// Everything that could be left, one line for each thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
    /// Bytes in tmpfs and shared memory, whether a path leads to them or not.
    tmpfs: u64,
}

impl Snapshot {
    /// Lists what is there now. A template that is just being made has processes and mounts of its own: it is waited for.
    pub fn take() -> Result<Snapshot> {
        wait_for_template()?;
        let mut things = BTreeSet::new();
        mounts(&mut things)?;
        links(&mut things)?;
        control_groups(&mut things)?;
        processes(&mut things)?;
        for (folder, depth) in FOLDERS {
            files(Path::new(folder), *depth, &mut things);
        }
        containerd(&mut things)?;
        Ok(Snapshot { things, tmpfs: tmpfs_bytes()? })
    }

    /// What is there now and was not then.
    fn new_since(&self, before: &Snapshot) -> Vec<String> {
        let mut new: Vec<String> = self.things.difference(&before.things).cloned().collect();
        if self.tmpfs > before.tmpfs + KEPT_TMPFS {
            new.push(format!("{} KiB in tmpfs", (self.tmpfs - before.tmpfs) >> 10));
        }
        new
    }
}

/// Fails with the list of what is left since `before`, after giving it ten seconds to go.
pub fn assert_clean(before: &Snapshot) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = Snapshot::take()?.new_since(before);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{} things are left after {DEADLINE:?}:\n  {}", left.len(), left.join("\n  "));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until no template is being made: its maker holds the store's lock.
pub fn wait_for_template() -> Result<()> {
    let deadline = Instant::now() + TEMPLATE_DEADLINE;
    loop {
        let is_made = match fs::File::open(Path::new(TEMPLATES).join(".lock")) {
            Ok(lock) => matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)),
            Err(_) => false,
        };
        if !is_made {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("A template is still being made after {TEMPLATE_DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the kernel has charged to the test host: a file that is deleted and still held open counts, and what other test
/// hosts do does not. Without a memory controller, what the machine has.
fn tmpfs_bytes() -> Result<u64> {
    let sources = [
        ("/sys/fs/cgroup/memory/memory.stat", "total_shmem ", 1),
        ("/sys/fs/cgroup/memory.stat", "shmem ", 1),
        ("/proc/meminfo", "Shmem: ", 1 << 10),
    ];
    for (file, key, unit) in sources {
        let Ok(text) = fs::read_to_string(file) else { continue };
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
        let value: u64 =
            value.and_then(|value| value.parse().ok()).with_context(|| format!("{file} has no {key}"))?;
        return Ok(value * unit);
    }
    bail!("Neither a memory cgroup nor /proc/meminfo tells how much there is in tmpfs")
}

fn mounts(things: &mut BTreeSet<String>) -> Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        if let Some(at) = line.split(' ').nth(4) {
            let kind =
                line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
            things.insert(format!("mount {at} ({kind})"));
        }
    }
    Ok(())
}

fn links(things: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir("/sys/class/net")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !KEPT_LINKS.contains(&name.as_str()) {
            things.insert(format!("network link {name}"));
        }
    }
    Ok(())
}

fn control_groups(things: &mut BTreeSet<String>) -> Result<()> {
    for hierarchy in cgroups::hierarchies()? {
        let mut groups = BTreeSet::new();
        folders_below(&hierarchy.at, &mut groups);
        for group in groups {
            let path = group.strip_prefix(&hierarchy.at.to_string_lossy().into_owned()).unwrap_or(&group);
            let path = path.trim_start_matches('/');
            let kept = path.is_empty() || KEPT_CGROUPS.contains(&path) || is_pod_parent(path);
            if !kept {
                things.insert(format!("cgroup {group}"));
            }
        }
    }
    Ok(())
}

/// `kubepods/pod<uid>`: kubelet's own group of a pod, made by the runtime on the way to the container's.
fn is_pod_parent(path: &str) -> bool {
    path.strip_prefix("kubepods/pod").is_some_and(|uid| !uid.contains('/'))
}

fn folders_below(folder: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(entry.path().to_string_lossy().into_owned());
            folders_below(&entry.path(), found);
        }
    }
}

fn processes(things: &mut BTreeSet<String>) -> Result<()> {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // A process may end while we look: then it is not left.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        // Threads of the kernel come and go as it likes: kthreadd, which is 2, and its children. A test host of its own
        // pid namespace has none.
        let parent = rest.split(' ').nth(2);
        if parent == Some("2") || (parent == Some("0") && pid == "2") {
            continue;
        }
        let started = rest.split(' ').nth(20).unwrap_or_default();
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let command = command.trim_end();
        // A test may restart containerd.
        things.insert(match command {
            "containerd" => "process containerd".to_owned(),
            _ => format!("process {name}) {command} (started {started})"),
        });
    }
    Ok(())
}

fn files(folder: &Path, depth: usize, things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let text = path.to_string_lossy().into_owned();
        if !KEPT.contains(&text.as_str()) {
            things.insert(format!("file {text}"));
        }
        if text == TEMPLATES {
            continue;
        }
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, depth - 1, things);
        }
    }
}

/// What containerd itself remembers; images are the caller's.
fn containerd(things: &mut BTreeSet<String>) -> Result<()> {
    for namespace in ["default", "k8s.io"] {
        for (what, arguments) in [
            ("container", &["containers", "list", "--quiet"][..]),
            ("task", &["tasks", "list", "--quiet"]),
            ("lease", &["leases", "list", "--quiet"]),
        ] {
            for line in ctr(namespace, arguments)?.lines() {
                things.insert(format!("{what} {namespace}/{line}"));
            }
        }
        for snapshotter in ["overlayfs", "native"] {
            let list = ctr(namespace, &["snapshots", "--snapshotter", snapshotter, "list"])?;
            for line in list.lines().skip(1).filter(|line| !line.trim_end().ends_with("Committed")) {
                let key = line.split_whitespace().next().unwrap_or_default();
                things.insert(format!("snapshot {namespace}/{snapshotter}/{key}"));
            }
        }
    }
    Ok(())
}

fn ctr(namespace: &str, arguments: &[&str]) -> Result<String> {
    programs::output(Command::new("ctr").args(["--namespace", namespace]).args(arguments))
}
