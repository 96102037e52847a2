//! The sandbox's and the containers' storages: what is mounted in the guest before a container can use it, counted
//! by user and undone after the last one. Called by `sandbox`; each mount point has a lock of its own, so that one
//! mount that hangs keeps nothing else waiting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_proto::agent::Storage;

use crate::error::{Context as _, Error, Kind, Result};

mod local;
mod mountinfo;
mod mountpoint;
mod options;
mod overlay;
pub mod path;
pub mod share;
mod tmpfs;

pub use mountpoint::unmount;
pub use overlay::{bounded_upper, upper_usage};

/// All that agent and host agree to be the agent's: containers' bundles, the share's tags, the sandbox's files.
pub const ROOT: &str = "/run/kata-containers";

/// Kinds of storage that [`Storages::acquire`] knows, as the agent announces them.
pub const DRIVERS: [&str; 5] = ["virtio-fs", "bind", "overlayfs", "ephemeral", "local"];

/// The storages in use.
#[derive(Debug, Default)]
pub struct Storages {
    slots: Mutex<BTreeMap<PathBuf, Slot>>,
}

#[derive(Debug)]
struct Slot {
    users: usize,
    request: Storage,
    /// Locked while it is mounted or undone.
    made: Arc<tokio::sync::Mutex<Option<Undo>>>,
}

/// Steps that undo a storage, to be taken from the last to the first. Each succeeds if there is nothing to undo.
type Undo = Vec<Step>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Unmount(PathBuf),
    /// Remove a directory that is empty but for what was mounted there.
    RemoveDirectory(PathBuf),
    /// Remove a file that was made to be mounted on.
    RemoveFile(PathBuf),
    /// Remove a directory with all that containers have left in it.
    RemoveTree(PathBuf),
}

impl Storages {
    /// Makes a storage, or counts one more user of one that is there already; answers its mount point, which is to be
    /// given to [`Storages::release`] once.
    ///
    /// # Errors
    /// `InvalidArgument` for one that cannot be made as it is written, `FailedPrecondition` if its mount point holds
    /// another; nothing stays mounted then.
    pub async fn acquire(&self, request: &Storage) -> Result<PathBuf> {
        let at = path::own(&request.mount_point)?;
        let made = self.enter(&at, request)?;
        let mut undo = made.lock().await;
        if undo.is_none() {
            match make(request.clone(), at.clone()).await {
                Ok(steps) => *undo = Some(steps),
                Err(error) => {
                    drop(undo);
                    self.leave(&at);
                    return Err(error);
                }
            }
        }
        drop(undo);
        Ok(at)
    }

    /// One user less; after the last the storage is undone.
    ///
    /// # Errors
    /// The first step that failed; all have been tried.
    pub async fn release(&self, at: &Path) -> Result<()> {
        let Some(made) = self.made(at) else { return Ok(()) };
        let mut undo = made.lock().await;
        let last = self.slots().get_mut(at).is_some_and(|slot| {
            slot.users = slot.users.saturating_sub(1);
            slot.users == 0
        });
        let steps = if last { undo.take() } else { None };
        let result = match steps {
            Some(steps) => blocking(move || undo_all(&steps)).await,
            None => Ok(()),
        };
        drop(undo);
        let mut slots = self.slots();
        if slots.get(at).is_some_and(|slot| slot.users == 0) {
            slots.remove(at);
        }
        result
    }

    /// Whether a storage of this kind is in use at a path.
    #[must_use]
    pub fn has(&self, at: &Path, driver: &str) -> bool {
        self.slots().get(at).is_some_and(|slot| slot.request.driver == driver)
    }

    fn enter(&self, at: &Path, request: &Storage) -> Result<Arc<tokio::sync::Mutex<Option<Undo>>>> {
        let mut slots = self.slots();
        let slot = slots.entry(at.to_owned()).or_insert_with(|| Slot {
            users: 0,
            request: request.clone(),
            made: Arc::default(),
        });
        if slot.request != *request || (slot.users > 0 && request.driver == overlay::DRIVER) {
            let text = format!("{} is in use as another storage ({})", at.display(), slot.request.driver);
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        slot.users += 1;
        Ok(slot.made.clone())
    }

    fn leave(&self, at: &Path) {
        let mut slots = self.slots();
        if let Some(slot) = slots.get_mut(at) {
            slot.users = slot.users.saturating_sub(1);
            if slot.users == 0 {
                slots.remove(at);
            }
        }
    }

    fn made(&self, at: &Path) -> Option<Arc<tokio::sync::Mutex<Option<Undo>>>> {
        self.slots().get(at).map(|slot| slot.made.clone())
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn make(request: Storage, at: PathBuf) -> Result<Undo> {
    blocking(move || {
        let mut undo = Undo::new();
        let made = match request.driver.as_str() {
            // The kata runtime binds through this driver too.
            "virtio-fs" if request.fstype == "bind" => mountpoint::bind(&request, &at, &mut undo),
            "virtio-fs" => mountpoint::virtio_fs(&request, &at, &mut undo),
            "bind" => mountpoint::bind(&request, &at, &mut undo),
            overlay::DRIVER => overlay::make(&request, &at, &mut undo),
            tmpfs::DRIVER => tmpfs::make(&request, &at, &mut undo),
            "local" => local::make(&request, &at, &mut undo),
            other => {
                let text = format!("Storage driver {other:?} is none of {}", DRIVERS.join(", "));
                Err(Error::new(Kind::InvalidArgument, text))
            }
        };
        match made {
            Ok(()) => Ok(undo),
            Err(error) => {
                if let Err(also) = undo_all(&undo) {
                    log::warn!("After a failed mount: {}", also.chain());
                }
                let text = format!("Could not make the {} storage {}", request.driver, at.display());
                Err(Error::caused(error.kind(), text, error))
            }
        }
    })
    .await
}

/// Changes a tmpfs in use, as kata's UpdateEphemeralMounts does after memory was added.
///
/// # Errors
/// If there is none, or the kernel refuses its new options.
pub async fn remount(storages: &Storages, request: Storage) -> Result<()> {
    let at = path::own(&request.mount_point)?;
    if !storages.has(&at, tmpfs::DRIVER) {
        let text = format!("No ephemeral storage is in use at {}", at.display());
        return Err(Error::new(Kind::NotFound, text));
    }
    blocking(move || tmpfs::remount(&request, &at)).await
}

fn undo_all(undo: &[Step]) -> Result<()> {
    let results: Vec<_> = undo.iter().rev().map(Step::take).collect();
    results.into_iter().collect()
}

impl Step {
    fn take(&self) -> Result<()> {
        match self {
            Self::Unmount(at) => unmount(at),
            Self::RemoveDirectory(at) => gone(std::fs::remove_dir(at), at),
            Self::RemoveFile(at) => gone(std::fs::remove_file(at), at),
            Self::RemoveTree(at) => gone(std::fs::remove_dir_all(at), at),
        }
    }
}

fn gone(removal: std::io::Result<()>, at: &Path) -> Result<()> {
    match removal {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.context(|| format!("Could not remove {}", at.display())),
    }
}

/// Runs what may block on a thread of its own; it goes on to its end even if the caller is gone.
///
/// # Errors
/// Its own.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context(|| "A piece of work of the agent broke off")?
}

#[cfg(test)]
mod tests;
