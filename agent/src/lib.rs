//! The guest's agent as a library: `main.rs` is PID 1 and puts the parts together.

pub mod cgroup;
pub mod container;
pub mod error;
pub mod files;
pub mod init;
pub mod machine;
pub mod network;
pub mod reaper;
pub mod rpc;
pub mod sandbox;
pub mod stdio;
pub mod storage;
pub mod streams;
pub mod transport;

#[cfg(test)]
mod testing;
