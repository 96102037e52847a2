//! The sandbox against a scripted VMM and guest: real ledger, stubs, cgroups, network namespace, share and daemons, no
//! VM. Needs root, as the shim does. Every test ends by asserting that nothing is left on the host.
// A test that panics has failed, in its helpers too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checkpoint;
mod faults;
mod host;
mod life;
mod template;
