//! Test host, CRI client and leak checks, shared by `cargo xtask demo` and the end-to-end tests.

pub mod cgroups;
pub mod host;
pub mod images;
