//! Host cgroups of a pod: one below the parent that the kubelet chose, in it one for the VMM and its daemons and one
//! for each container, which mirrors the container's limits for whoever reads them on the host. Called by `sandbox`
//! and `container`; works on the unified hierarchy, the older ones and both at once. Functions block shortly, those
//! that remove up to two seconds.

mod hierarchy;
mod limits;
mod path;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::LinuxResources;

use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};
use hierarchy::Hierarchy;

/// The processes of a pod that are not a container's: the VMM and what it needs.
const VMM: &str = "vmm";

/// `cgroup.procs` files of the cgroup `path` (relative to the root) in the hierarchies where it exists.
///
/// # Errors
/// `FailedPrecondition` if no cgroup filesystem is mounted.
pub fn existing(path: &Path) -> Result<Vec<PathBuf>> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let files =
        hierarchy::mounted()?.into_iter().map(|hierarchy| hierarchy.root().join(below).join("cgroup.procs"));
    Ok(files.filter(|file| file.exists()).collect())
}

/// The cgroup of one pod, in every hierarchy.
#[derive(Debug)]
pub struct PodCgroup {
    directories: Vec<Directory>,
    ledger: Arc<Ledger>,
}

/// One cgroup in one hierarchy.
#[derive(Debug, Clone)]
struct Directory {
    hierarchy: Hierarchy,
    path: PathBuf,
}

impl PodCgroup {
    /// Makes the cgroup that `cgroups_path` of the sandbox's OCI spec names: `/parent/name`, or `slice:prefix:name` as
    /// systemd's users write it. Without one it gets a name of its own at the root.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed path, `AlreadyExists` if that cgroup has processes: they are not ours.
    pub fn create(cgroups_path: &str, sandbox: &str, ledger: &Arc<Ledger>) -> Result<Self> {
        Self::create_in(hierarchy::mounted()?, cgroups_path, sandbox, ledger)
    }

    fn create_in(
        hierarchies: Vec<Hierarchy>,
        cgroups_path: &str,
        sandbox: &str,
        ledger: &Arc<Ledger>,
    ) -> Result<Self> {
        let path = if cgroups_path.is_empty() {
            PathBuf::from(format!("microvm-{}-{sandbox}", ledger.owner().namespace))
        } else {
            path::parse(cgroups_path)?
        };
        let directories: Vec<_> = hierarchies
            .into_iter()
            .map(|hierarchy| Directory { path: hierarchy.root().join(&path), hierarchy })
            .collect();
        // Before the first claim: from then on everything in these cgroups will be killed one day.
        for directory in &directories {
            directory.refuse_if_populated()?;
        }
        let pod = PodCgroup { directories, ledger: ledger.clone() };
        pod.make().map_err(|error| error.with_cleanup(pod.remove().err().into_iter().collect()))?;
        Ok(pod)
    }

    fn make(&self) -> Result<()> {
        for directory in &self.directories {
            self.ledger.claim(Resource::Cgroup(directory.path.clone()))?;
            directory.make_parents()?;
            directory.make()?;
            directory.hierarchy.delegate(&directory.path);
            directory.child(VMM).make()?;
        }
        Ok(())
    }

    /// `cgroup.procs` files for the VMM and its daemons.
    #[must_use]
    pub fn vmm_procs(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| directory.child(VMM).procs()).collect()
    }

    /// Makes the cgroup of the container `id` with the limits of its spec.
    ///
    /// # Errors
    /// `InvalidArgument` if the kernel refuses a limit; nothing is left then.
    pub fn container(&self, id: &str, resources: Option<&LinuxResources>) -> Result<ContainerCgroup> {
        if id.contains('/') {
            return Err(Error::new(Kind::InvalidArgument, format!("Container id {id:?} has a slash")));
        }
        // The prefix keeps an id like `vmm` or `cgroup.procs` from meaning something else.
        let name = format!("container-{id}");
        let directories = self.directories.iter().map(|directory| directory.child(&name)).collect();
        let container = ContainerCgroup { directories };
        let made =
            container.make().and_then(|()| resources.map_or(Ok(()), |limits| container.update(limits)));
        made.map_err(|error| error.with_cleanup(container.remove().err().into_iter().collect()))?;
        Ok(container)
    }

    /// Kills everything in the pod's cgroup and removes it, those of containers too.
    ///
    /// # Errors
    /// If processes don't die within two seconds.
    pub fn remove(&self) -> Result<()> {
        let release = |directory: &Directory| self.ledger.release(&Resource::Cgroup(directory.path.clone()));
        first_with_rest(self.directories.iter().filter_map(|directory| release(directory).err()))
    }
}

/// The host cgroup of one container. It goes with the pod's, at the latest.
#[derive(Debug)]
pub struct ContainerCgroup {
    directories: Vec<Directory>,
}

impl ContainerCgroup {
    fn make(&self) -> Result<()> {
        self.directories.iter().try_for_each(Directory::make)
    }

    /// `cgroup.procs` files for what stands for the container's processes.
    #[must_use]
    pub fn procs(&self) -> Vec<PathBuf> {
        self.directories.iter().map(Directory::procs).collect()
    }

    /// Sets the limits on memory, CPU and number of processes that `resources` has; the others stay as they are.
    ///
    /// # Errors
    /// `InvalidArgument` if the kernel refuses one; those before it are set.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.directories
            .iter()
            .try_for_each(|directory| directory.hierarchy.limit(&directory.path, resources))
    }

    /// Kills everything in the cgroup and removes it.
    ///
    /// # Errors
    /// If processes don't die within two seconds.
    pub fn remove(&self) -> Result<()> {
        let remove = |directory: &Directory| Resource::Cgroup(directory.path.clone()).undo();
        first_with_rest(self.directories.iter().filter_map(|directory| remove(directory).err()))
    }
}

impl Directory {
    fn child(&self, name: &str) -> Directory {
        Directory { hierarchy: self.hierarchy.clone(), path: self.path.join(name) }
    }

    fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    fn make(&self) -> Result<()> {
        self.hierarchy.make(&self.path).context(|| format!("Could not make cgroup {}", self.path.display()))
    }

    /// The parents usually exist, made by the kubelet; those that don't stay, as with every other runtime: they may
    /// be in use by others by the time we could remove them.
    fn make_parents(&self) -> Result<()> {
        let below = self.path.strip_prefix(self.hierarchy.root()).unwrap_or(Path::new(""));
        let mut parent = self.hierarchy.root().to_owned();
        self.hierarchy.delegate(&parent);
        for name in below.parent().unwrap_or(Path::new("")) {
            parent.push(name);
            Directory { hierarchy: self.hierarchy.clone(), path: parent.clone() }.make()?;
            self.hierarchy.delegate(&parent);
        }
        Ok(())
    }

    fn refuse_if_populated(&self) -> Result<()> {
        if hierarchy::is_populated(&self.path) {
            let text =
                format!("Cgroup {} has processes already, which are not this pod's", self.path.display());
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        Ok(())
    }
}

fn first_with_rest(mut failures: impl Iterator<Item = Error>) -> Result<()> {
    match failures.next() {
        Some(first) => Err(first.with_cleanup(failures.collect())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
