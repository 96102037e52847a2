//! Real containers on the machine the tests run on: needs root and cgroup2. The agent's binary is the helper, as in the guest.
//! The root file system is an empty directory with this machine's /usr bound into it, read-only.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which the lints do not know as such"
)]

#[path = "container/filesystem.rs"]
mod filesystem;
#[path = "container/life.rs"]
mod life;
#[path = "container/privileges.rs"]
mod privileges;
#[path = "container/resources.rs"]
mod resources;
#[path = "container/streams.rs"]
mod streams;
#[path = "container/world.rs"]
mod world;
