//! The ledger of a sandbox that a test makes up. Called by the tests of whatever claims resources.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::Result;
use crate::ledger::{Ledger, Owner, Shim};

/// A new ledger at `dir`, which must not exist, of the sandbox `pod` in the namespace `ns`, served by this process.
///
/// # Errors
/// As [`Ledger::create`].
pub fn ledger(dir: &Path) -> Result<Arc<Ledger>> {
    let owner = Owner {
        namespace: "ns".into(),
        sandbox: "pod".into(),
        bundle: PathBuf::new(),
        containerd_address: PathBuf::new(),
        ttrpc_address: String::new(),
        shim: Shim::current()?,
    };
    Ok(Arc::new(Ledger::create(dir, owner)?))
}
