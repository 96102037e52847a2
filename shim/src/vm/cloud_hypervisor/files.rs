//! The files of one machine in its sandbox's directory. Called by this VMM only.

use std::path::{Path, PathBuf};

use crate::ledger::Resource;
use crate::vm::console;

/// Names in the directory of one sandbox.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// In the sandbox's directory `dir`.
    pub(super) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where the VMM is asked.
    pub(super) fn api(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// Where the guest's vsock is reached; the VMM makes it.
    pub(super) fn vsock(&self) -> PathBuf {
        self.dir.join("vsock.sock")
    }

    /// The only directory that the VMM writes into: where it leaves a device state.
    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where a device state waits, rewritten, for the VMM to load it.
    pub(super) fn incoming(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    /// All of them, for the ledger.
    pub(super) fn resources(&self) -> Vec<Resource> {
        let [api, vsock, log] = [self.api(), self.vsock(), console::path(&self.dir)].map(Resource::File);
        let [state, incoming] = [self.state(), self.incoming()].map(Resource::Directory);
        vec![log, state, incoming, api, vsock]
    }
}
