//! A VMM and a guest agent without a VM, for the tests of the sandbox: ordinary code behind the feature `testing`. The
//! agent speaks its real protocol over a socket; what a container does is in its arguments, see [`agent`].

pub mod agent;
pub mod cloud_hypervisor;
mod ledger;
mod process;
mod server;
mod vm;

pub use ledger::ledger;
pub use vm::{Fault, ScriptedVmm};
