//! The mounts of the spec.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use rustix::fs::FileType;

use super::root::{Root, mode};
use super::tree::Tree;
use crate::container::plan::{Mount, Source};
use crate::error::{Context as _, Error, Kind, Result};

/// What may be mounted over below /proc: files that tools replace with a container's own figures. Anything else could be used to
/// mislead the programs that trust /proc.
const PROC_FILES: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "slabinfo",
    "stat",
    "swaps",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// MOUNT_ATTR_RDONLY.
const READ_ONLY: u64 = 1;

/// A mount and the attributes it gets later.
type Later = (Tree, (u64, u64));

/// In order. New file systems stay writable until the nodes and mount points on them are made: what is to be done then is the answer.
pub(super) fn mount_all(root: &Root, mounts: &[Mount]) -> Result<Vec<Later>> {
    let mut later = Vec::new();
    for mount in mounts {
        let done = mount_one(root, mount).map_err(|error| {
            Error::caused(
                error.kind(),
                format!("Could not mount {} on {}", name(&mount.source), mount.target),
                error,
            )
        })?;
        later.extend(done);
    }
    Ok(later)
}

/// Whether the container's /dev is somebody else's, to be left as it is.
pub(super) fn replaces_dev(mount: &Mount) -> bool {
    matches!(mount.source, Source::Bind { .. }) && parts(&mount.target) == ["dev"]
}

fn name(source: &Source) -> &str {
    match source {
        Source::Bind { path, .. } => path,
        Source::New { kind, .. } => kind,
        Source::Cgroup => "cgroup2",
    }
}

fn mount_one(root: &Root, mount: &Mount) -> Result<Option<Later>> {
    let tree = source(root, mount).context(|| "Could not make the mount")?;
    let (mut set, clear) = mount.attributes;
    let postponed = matches!(mount.source, Source::New { .. }) && set & READ_ONLY != 0;
    if postponed {
        set &= !READ_ONLY;
    }
    restrict(&tree, mount, (set, clear))?;
    attach(root, mount, &tree)?;
    Ok(postponed.then_some((tree, (READ_ONLY, 0))))
}

/// Gives a detached tree its attributes.
fn restrict(tree: &Tree, mount: &Mount, attributes: (u64, u64)) -> Result<()> {
    tree.change(attributes, false).context(|| "Could not set its options")?;
    tree.change(mount.recursive, true).context(|| "Could not set its recursive options")
}

/// Puts a detached tree in its place.
fn attach(root: &Root, mount: &Mount, tree: &Tree) -> Result<()> {
    let target = target(root, &mount.target, tree)?;
    check_proc(&mount.target, &target, tree)?;
    tree.attach(&target).context(|| "Could not attach it")?;
    mount
        .propagation
        .iter()
        .try_for_each(|&flags| tree.propagate(flags).context(|| "Could not set its propagation"))
}

/// A bind mount of the guest's that waits for its place in a container.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    mount: &'a Mount,
    tree: Tree,
}

impl<'a> Pending<'a> {
    /// Takes what is at the mount's source now, in the caller's mount namespace.
    pub(super) fn take(mount: &'a Mount) -> Result<Self> {
        let Source::Bind { path, recursive } = &mount.source else {
            let text = format!("Only bind mounts can be renewed, {} is none", mount.target);
            return Err(Error::new(Kind::InvalidArgument, text));
        };
        let tree = Tree::copy(path, *recursive).context(|| format!("Could not look at {path}"))?;
        restrict(&tree, mount, mount.attributes)?;
        Ok(Self { mount, tree })
    }

    /// Puts it on top of whatever is at its target below `root`.
    pub(super) fn put(&self, root: &Root) -> Result<()> {
        attach(root, self.mount, &self.tree)
            .context(|| format!("Could not mount {} on {}", name(&self.mount.source), self.mount.target))
    }
}

fn source(root: &Root, mount: &Mount) -> io::Result<Tree> {
    match &mount.source {
        Source::Bind { path, recursive } => Tree::copy(path, *recursive),
        Source::Cgroup => Tree::new("cgroup2", "cgroup", &[]),
        Source::New { kind, source, options } if kind == "tmpfs" => {
            // Over a directory of the image it looks like that directory, as users of /tmp or /run expect.
            let mut options = options.clone();
            if !options.iter().any(|(key, _)| key == "mode")
                && let Ok(existing) = root.find(&mount.target)
            {
                options.push(("mode".to_owned(), Some(format!("{:o}", mode(&existing)? & 0o7777))));
            }
            Tree::new(kind, source, &options)
        }
        Source::New { kind, source, options } => Tree::new(kind, source, options),
    }
}

/// The mount point, made if it is missing, of the kind that the source is.
fn target(root: &Root, path: &str, tree: &Tree) -> Result<OwnedFd> {
    let directory =
        FileType::from_raw_mode(mode(tree.fd()).context(|| "Could not look at the source")?).is_dir();
    let made = if directory { root.directory(path) } else { root.file(path) };
    made.context(|| "Could not make the mount point")
}

/// By name, and by what the name has led to: a symlink into /proc is no way around.
fn check_proc(path: &str, target: &OwnedFd, tree: &Tree) -> Result<()> {
    let parts = parts(path);
    let allowed = match parts.split_first() {
        Some((&"proc", [])) => in_proc(tree.fd())?,
        Some((&"proc", below)) => PROC_FILES.contains(&below.join("/").as_str()),
        _ => !in_proc(target)?,
    };
    if allowed {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidArgument, "Only proc itself and a few of its files may be mounted there"))
}

fn in_proc(fd: impl AsFd) -> Result<bool> {
    Ok(fstatfs(fd).context(|| "Could not look at the mount point")?.filesystem_type() == PROC_SUPER_MAGIC)
}

fn parts(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}
