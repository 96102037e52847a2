//! containerd shim v2 plugin `io.containerd.microvm.v1`: every pod is one micro-VM.
//!
//! Rooms, and who may know whom (held by `cargo xtask tidy`): `service` translates containerd's requests and
//! knows no VMM; `sandbox` is the pod and calls `vm`, `share`, `network`, `guest` and `snapshot`, which do not
//! know each other's users; `snapshot` alone parses snapshot files.

pub mod bootstrap;
pub mod cgroup;
pub mod config;
mod container;
pub mod error;
pub mod events;
pub mod guest;
pub mod images;
pub mod ledger;
mod log;
pub mod network;
mod phases;
pub mod sandbox;
pub mod service;
pub mod share;
pub mod snapshot;
mod stats;
pub mod stdio;
pub mod stub;
pub mod task;
pub mod template;
#[cfg(feature = "testing")]
pub mod testing;
pub mod vm;

pub use config::Config;
pub use error::{Error, Result};
