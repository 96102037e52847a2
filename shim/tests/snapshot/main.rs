//! Snapshots through their public interface: what is saved comes back, what was changed is refused, and whatever
//! fails leaves an empty directory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy.toml's exception covers unit tests only")]

mod faults;
mod hostile;
mod roundtrip;
mod store;
mod support;
