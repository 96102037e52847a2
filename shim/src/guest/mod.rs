//! What the shim says to the guest: the agent's client, the names of containers in there, and the translation of
//! an OCI spec. Called by `sandbox`, `container` and `stdio`; knows no VMM and mounts nothing on the host.

mod client;
mod container;
mod extension;
mod failure;
mod name;
mod network;
pub mod paths;
mod process;
mod sandbox;
pub mod spec;
mod watched;

#[cfg(test)]
mod testing;

pub use client::Agent;
pub use name::GuestName;
pub use sandbox::Details;
