//! Snapshots of a pod: a flat directory with `manifest.json`, the VMM's device state, `ram` and `ram.index`.
//! This module alone reads and writes such files. Called by `sandbox` (checkpoint, restore) and `microvmctl`;
//! knows no VMM, no container and no image store. Everything here blocks: call it from a blocking task.
//!
//! A snapshot may come from anywhere. A file is opened once, without following links; every byte that is used
//! was checked in our own memory first; nothing grows beyond what the manifest (itself bounded) allows.

mod checksum;
mod copy;
mod dir;
pub mod manifest;
mod open;
mod ram;
mod save;
pub mod store;

use std::fs::File;
use std::time::Instant;

pub use checksum::Checksum;
pub use manifest::{Contents, Manifest};
pub use open::Snapshot;
pub use ram::Form;
pub use save::{FinishedSave, Save, clear_unfinished};
pub use store::Store;

use crate::error::{Context, Result};

/// Name of the manifest in a snapshot's directory.
pub const MANIFEST: &str = "manifest.json";
/// Name of the file with the guest's RAM.
pub const RAM: &str = "ram";
/// Name of the file that says which pages are in [`RAM`], and their checksums.
pub const RAM_INDEX: &str = "ram.index";

/// Copies the RAM of a guest, which must stand still, with its holes. Nothing is copied where the filesystem shares
/// blocks. For what is no snapshot: templates.
///
/// # Errors
/// `DeadlineExceeded` at `deadline`, `ResourceExhausted` on a full disk.
pub fn copy_ram(from: &File, to: &File, deadline: Instant) -> Result<()> {
    let size = from.metadata().context(|| "Could not find out how much RAM there is".into())?.len();
    ram::capture(from, to, size, deadline)
}

/// Makes holes of the pages of a copy of RAM that are all zero.
///
/// # Errors
/// When it can't be read.
pub fn drop_zero_pages(copy: &File) -> Result<()> {
    let size = copy.metadata().context(|| "Could not find out how much RAM there is".into())?.len();
    ram::tidy_plain(copy, size).map(drop)
}
