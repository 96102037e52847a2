//! What a node needs to run `io.containerd.microvm.v1`: the guest's kernel and initramfs, what containerd and
//! Kubernetes must know, and the installer that lays it all down. Called by `xtask` and, for [`assets`], by the shim
//! and `microvmctl`.

pub mod arch;
pub mod assets;
mod fsx;
#[cfg(feature = "build")]
pub mod guest;
pub mod installer;
pub mod mirror;

pub use arch::Architecture;
