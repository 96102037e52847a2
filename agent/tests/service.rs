//! The agent's services as a host uses them: over sockets, with real containers, storages and namespaces. Needs root and
//! cgroup2. Each test has a mount and network namespace of its own, and the one reaper that a process can have.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which the lints do not know as such"
)]

#[path = "service/connection.rs"]
mod connection;
#[path = "service/methods.rs"]
mod methods;
#[path = "service/pod.rs"]
mod pod;
#[path = "service/world.rs"]
mod world;
