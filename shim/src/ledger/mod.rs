//! The write-ahead record of everything one sandbox owns on the host: `sandbox.json` in its directory. Each resource
//! is written down before it is made, so a failed start, a normal stop and `delete` after a crash undo the same list.
//! Called by `sandbox` and all who make host resources for it, and by `bootstrap`. All functions block, shortly except
//! for the undoing ones.

mod cgroup;
mod hook;
mod process;
mod resource;
mod store;
mod tree;
mod undo;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use process::start_time;
pub use resource::{Poststop, Resource};

use crate::error::{Error, Kind, Result};

/// Whose resources these are: all that `delete` and recovery know about a sandbox whose shim is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// containerd's namespace.
    pub namespace: String,
    /// Id of the sandbox: of its first container, in containerd's words.
    pub sandbox: String,
    /// Bundle of the sandbox's first container.
    pub bundle: PathBuf,
    /// containerd's gRPC socket.
    pub containerd_address: PathBuf,
    /// containerd's ttrpc socket, where events go.
    pub ttrpc_address: String,
    /// The shim that serves the sandbox.
    pub shim: Shim,
}

/// The process that serves a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shim {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks after boot; tells it from a later process with the same id.
    pub start_time: u64,
}

impl Shim {
    /// The calling process.
    ///
    /// # Errors
    /// `Internal` if `/proc` is not there.
    pub fn current() -> Result<Self> {
        let pid = std::process::id();
        Ok(Shim { pid, start_time: start_time(pid)? })
    }

    /// Whether that very process still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::is_alive(self.pid, self.start_time)
    }
}

/// The list of one sandbox's resources, in memory and on disk. Shared as `Arc<Ledger>`.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: store::Record,
    /// Everything is released and the directory removed: nothing can be written down any more.
    closed: bool,
}

impl Ledger {
    /// Makes `dir` (mode 0700; its parents too) with an empty record, and a link to it in the owner's bundle.
    ///
    /// # Errors
    /// `AlreadyExists` if `dir` has a record: whoever made it must be gone, and its resources released, first.
    pub fn create(dir: &Path, owner: Owner) -> Result<Self> {
        store::make_directory(dir)?;
        if store::exists(dir) {
            return Err(Error::new(
                Kind::AlreadyExists,
                format!(
                    "Sandbox directory {} belongs to another shim or was left behind by one",
                    dir.display()
                ),
            ));
        }
        store::link(&owner.bundle, dir)?;
        let record = store::Record::new(owner);
        store::write(dir, &record)?;
        Ok(Self::with(dir, record))
    }

    /// The directory of the sandbox whose first container has `bundle`; none if it never had one. For those who don't
    /// know the config that the sandbox was made with.
    #[must_use]
    pub fn of_bundle(bundle: &Path) -> Option<PathBuf> {
        store::linked(bundle)
    }

    /// Reads the record that an earlier process left in `dir`.
    ///
    /// # Errors
    /// `NotFound` if there is none, `InvalidArgument` if it is malformed or of a newer format.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self::with(dir, store::read(dir)?))
    }

    fn with(dir: &Path, record: store::Record) -> Self {
        Ledger { dir: dir.to_owned(), state: Mutex::new(State { record, closed: false }) }
    }

    /// The directory of the sandbox.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whose resources these are.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.state().record.owner.clone()
    }

    /// Everything that is claimed, oldest first.
    #[must_use]
    pub fn resources(&self) -> Vec<Resource> {
        self.state().record.resources.clone()
    }

    /// Writes `resource` down, durably: call it *before* making the resource. A second claim changes nothing.
    ///
    /// # Errors
    /// If the record can't be written; then the resource must not be made. `FailedPrecondition` after everything
    /// was released.
    pub fn claim(&self, resource: Resource) -> Result<()> {
        let mut state = self.state();
        if state.closed {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("Could not make {resource}: the sandbox is torn down already"),
            ));
        }
        if state.record.resources.contains(&resource) {
            return Ok(());
        }
        state.record.resources.push(resource);
        let written = store::write(&self.dir, &state.record);
        if written.is_err() {
            state.record.resources.pop();
        }
        written
    }

    /// Undoes `resource` and then forgets it. One that is gone already is a success.
    ///
    /// # Errors
    /// If it can't be undone; it stays in the record.
    pub fn release(&self, resource: &Resource) -> Result<()> {
        // Not under the lock: ending a process may take seconds, and undoing twice does no harm.
        undo::undo(resource)?;
        self.forget(resource)
    }

    /// Strikes `resource` out: it is gone by itself, or belongs to somebody else now.
    ///
    /// # Errors
    /// If the record can't be written; it then holds the resource still, which does no harm.
    pub fn forget(&self, resource: &Resource) -> Result<()> {
        let mut state = self.state();
        let Some(index) = state.record.resources.iter().position(|known| known == resource) else {
            return Ok(());
        };
        let forgotten = state.record.resources.remove(index);
        if state.closed {
            return Ok(());
        }
        let written = store::write(&self.dir, &state.record);
        if written.is_err() {
            state.record.resources.insert(index, forgotten);
        }
        written
    }

    /// Undoes everything, newest first, to the end whatever fails, and removes the directory if nothing failed.
    /// Answers the failures; calling it again tries what is left.
    #[must_use]
    pub fn release_all(&self) -> Vec<Error> {
        let mut failures: Vec<Error> =
            self.resources().iter().rev().filter_map(|resource| self.release(resource).err()).collect();
        if failures.is_empty() {
            failures.extend(self.close().err());
        }
        failures
    }

    /// Removes the directory, unless somebody claimed something in the meantime.
    fn close(&self) -> Result<()> {
        let mut state = self.state();
        if state.closed {
            return Ok(());
        }
        if let Some(resource) = state.record.resources.last() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("Could not remove {}: {resource} was made meanwhile", self.dir.display()),
            ));
        }
        store::remove_directory(&self.dir)?;
        state.closed = true;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything can panic, so a poisoned lock guards a sound record.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
