//! What the guest may see of the host: images, read-only, and volumes, each tree served by a virtiofsd of its own.
//! Called by `sandbox` and `container`. Knows no VMM and no agent.

mod daemon;
mod dirs;
mod image;
mod queue;
mod tree;
pub mod virtiofsd;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use tokio::sync::{Mutex, watch};

pub use image::Image;
pub(crate) use tree::{OPTIONS, by_descriptor};

use crate::config::Config;
use crate::error::{Context, Error, Kind, Result};
use crate::guest::{GuestName, paths};
use crate::ledger::{Ledger, Resource};
use crate::vm::FsDevice;
use daemon::Daemon;
use dirs::Dirs;
use tree::{Propagation, Tree};
use virtiofsd::Serve;

/// Name of an image's mount point in its directory.
const ROOTFS: &str = "rootfs";

/// The share of one sandbox. The functions that mount block, shortly.
#[derive(Debug)]
pub struct Share {
    images: Dirs,
    volumes: Dirs,
    sandbox: PathBuf,
    ledger: Arc<Ledger>,
    daemons: Mutex<Vec<Daemon>>,
    death: watch::Sender<Option<String>>,
}

/// A file or directory of the host for a container.
#[derive(Debug, Clone, Copy)]
pub struct Volume<'a> {
    /// Path on the host; links are followed.
    pub source: &'a Path,
    /// Whether nobody in the guest may write to it, or to what is mounted below it.
    pub read_only: bool,
    /// Whether mounts that the host makes below it later appear in the guest.
    pub follow_mounts: bool,
}

impl Share {
    /// Makes the two trees below the sandbox's directory `sandbox` (VMDir). Nothing serves them yet.
    ///
    /// # Errors
    /// `Internal` if a directory or mount can't be made; what was made is in the ledger.
    pub fn prepare(sandbox: &Path, ledger: &Arc<Ledger>) -> Result<Self> {
        let share = sandbox.join("share");
        Ok(Self {
            images: Dirs::prepare(&share, "images", ledger)?,
            volumes: Dirs::prepare(&share, "volumes", ledger)?,
            sandbox: sandbox.to_owned(),
            ledger: ledger.clone(),
            daemons: Mutex::default(),
            death: watch::Sender::new(None),
        })
    }

    /// Shows a container's image at [`paths::image`].
    ///
    /// # Errors
    /// `InvalidArgument` for mounts of a snapshotter that can't be an image, `FailedPrecondition` for a writable
    /// layer with files in it, `NotFound` if a layer is missing. Nothing stays mounted.
    pub fn add_image(&self, name: &GuestName, generation: u32, image: Image<'_>) -> Result<()> {
        let tree = image::tree(image)?;
        attach(&self.ledger, &self.images, &paths::entry(name, generation), ROOTFS, tree, true)
    }

    /// Shows a file or directory as volume `index` of a container, and answers its path in the guest.
    ///
    /// # Errors
    /// `NotFound` if there is no such path, `InvalidArgument` if it is neither file nor directory. Nothing stays
    /// mounted.
    pub fn add_volume(
        &self,
        name: &GuestName,
        generation: u32,
        index: u32,
        volume: Volume<'_>,
    ) -> Result<String> {
        let source = volume.source.display();
        let tree = Tree::bind_recursive(volume.source).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => Kind::NotFound,
                _ => Kind::Internal,
            };
            Error::caused(kind, format!("Could not share the volume {source}"), error)
        })?;
        let stat = tree.metadata().context(|| format!("Could not look at the volume {source}"))?;
        let directory = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            other => {
                let text =
                    format!("The volume {source} is a {other:?}; only files and directories can be shared");
                return Err(Error::new(Kind::InvalidArgument, text));
            }
        };
        let propagation = if volume.follow_mounts { Propagation::Slave } else { Propagation::Private };
        let restrict = || -> io::Result<()> {
            tree.restrict(volume.read_only)?;
            tree.propagate(propagation)
        };
        restrict().context(|| format!("Could not restrict the volume {source}"))?;
        let entry = paths::entry(name, generation);
        attach(&self.ledger, &self.volumes, &entry, &index.to_string(), tree, directory)?;
        Ok(paths::volume(name, generation, index))
    }

    /// Takes everything of a container away again; the guest must have unmounted it before. Goes on after a
    /// failure, so call it again or leave the rest to the ledger.
    ///
    /// # Errors
    /// The first failure, with the others as its cleanup.
    pub fn remove(&self, name: &GuestName, generation: u32) -> Result<()> {
        let entry = paths::entry(name, generation);
        let mut failures = Vec::new();
        for dirs in [&self.volumes, &self.images] {
            let below = dirs.path().join(&entry);
            let mounts = self
                .ledger
                .resources()
                .into_iter()
                .rev()
                .filter(|resource| matches!(resource, Resource::Mount(path) if path.starts_with(&below)));
            failures.extend(mounts.filter_map(|mount| self.ledger.release(&mount).err()));
            let removed = dirs.remove(&entry).context(|| format!("Could not remove {}", below.display()));
            failures.extend(removed.err());
        }
        Error::first_of(failures)
    }

    /// Starts both daemons, which write themselves into `cgroup_procs` first. They listen when it returns. For a
    /// restore, everything must be in the share before.
    ///
    /// # Errors
    /// What a daemon says when it does not get ready within 10 s. Then none runs.
    pub async fn start(&self, config: &Config, cgroup_procs: &[PathBuf]) -> Result<()> {
        let mut daemons = self.daemons.lock().await;
        // Those of an earlier start have ended because they were told to.
        self.death.send_replace(None);
        let trees = [(&self.images, true), (&self.volumes, false)];
        for ((tree, read_only), device) in trees.into_iter().zip(self.devices()) {
            let serve = Serve { tag: device.tag, directory: tree.path().to_owned(), read_only };
            let place =
                daemon::Place { program: config.virtiofsd_path(), socket: &device.socket, cgroup_procs };
            match Daemon::start(&serve, &place, &self.ledger, self.death.clone()).await {
                Ok(daemon) => daemons.push(daemon),
                Err(error) => {
                    let failures = stop_all(&mut daemons, &self.ledger).await;
                    return Err(error.with_cleanup(failures));
                }
            }
        }
        Ok(())
    }

    /// The devices that a VMM connects to the daemons, in the order of their slots.
    #[must_use]
    pub fn devices(&self) -> Vec<FsDevice> {
        let device = |tag: &str, file: &str| FsDevice { tag: tag.into(), socket: self.sandbox.join(file) };
        vec![device(paths::IMAGES_TAG, "images.sock"), device(paths::VOLUMES_TAG, "volumes.sock")]
    }

    /// Says what a daemon's last words were when one has ended, for whatever reason: at the end of its VMM too.
    /// Without both daemons the guest hangs, so the VMM must then be killed.
    #[must_use]
    pub fn death(&self) -> watch::Receiver<Option<String>> {
        self.death.subscribe()
    }

    /// Ends the daemons and waits for it. The mounts stay. Nothing happens if none runs.
    ///
    /// # Errors
    /// The first failure, with the other as its cleanup.
    pub async fn stop(&self) -> Result<()> {
        Error::first_of(stop_all(&mut *self.daemons.lock().await, &self.ledger).await)
    }
}

async fn stop_all(daemons: &mut Vec<Daemon>, ledger: &Arc<Ledger>) -> Vec<Error> {
    let mut failures = Vec::new();
    for daemon in daemons.drain(..) {
        failures.extend(daemon.stop(ledger).await.err());
    }
    failures
}

/// Puts a detached tree in its place.
fn attach(ledger: &Ledger, dirs: &Dirs, entry: &str, name: &str, tree: Tree, directory: bool) -> Result<()> {
    let path = dirs.place_path(entry, name);
    let resource = Resource::Mount(path.clone());
    if ledger.resources().contains(&resource) {
        let text = format!("{} is in use; paths in the share are never used twice", path.display());
        return Err(Error::new(Kind::AlreadyExists, text));
    }
    let make = || -> io::Result<_> {
        dirs.entry(entry)?;
        dirs.mount_point(entry, name, directory)?;
        dirs.place(entry, name)
    };
    let place = make().context(|| format!("Could not make the mount point {}", path.display()))?;
    ledger.claim(resource.clone())?;
    let attached = tree.attach(place.as_fd()).context(|| format!("Could not mount on {}", path.display()));
    attached.map_err(|error| {
        let forgotten = ledger.forget(&resource);
        error.with_cleanup(forgotten.err().into_iter().collect())
    })
}
