//! The guest's agent as a library: `main.rs` is PID 1 and puts the parts together.

pub mod cgroup;
pub mod container;
pub mod error;
pub mod init;
pub mod reaper;
pub mod stdio;
pub mod transport;
