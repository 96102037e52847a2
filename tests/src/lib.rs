//! Test host, CRI client, leak checks and the demo: what `cargo xtask demo`, the end-to-end tests and the conformance
//! suites share.

pub mod cgroups;
pub mod counts;
pub mod cri;
pub mod demo;
pub mod host;
pub mod images;
pub mod leaks;
pub mod programs;
pub mod registry;
