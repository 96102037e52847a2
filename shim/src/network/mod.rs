//! The pod's network: what CNI made in the pod's namespace goes to the guest, over one tap for each interface.
//! Called by `sandbox` (boot, restore) and by `ledger` (undo). All functions block, for milliseconds: each works on
//! a thread of its own inside the namespace, so that no other thread of the shim ever leaves its namespace.

mod discover;
mod forward;
mod namespace;
mod redirect;
mod tap;

use std::path::Path;

use agent_proto::types::{ARPNeighbor, Interface, Route};

pub use discover::discover;
pub use forward::Forward;
pub use namespace::{create_netns, remove_netns};
pub use redirect::{redirect, remove_redirect};
pub use tap::{remove_tap, taps};

use crate::error::Result;
use crate::ledger::Ledger;
use crate::vm::NetDevice;

/// What the guest is told about the pod's network, in the agent's own words.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuestNetwork {
    /// The interfaces, in the order of their index; the n-th is the n-th network device of the machine.
    pub interfaces: Vec<Interface>,
    /// Routes of the main table; those that others need to reach their gateway come first.
    pub routes: Vec<Route>,
    /// Neighbours that CNI made permanent.
    pub neighbors: Vec<ARPNeighbor>,
}

/// Makes a tap for each interface of `links`, as the machine's network devices. Nothing flows through them yet.
///
/// # Errors
/// `AlreadyExists` when another sandbox has done so in this namespace; else what failed on which device. Whatever
/// was made is in the ledger.
pub fn plug(netns: &Path, links: &GuestNetwork, ledger: &Ledger) -> Result<Vec<NetDevice>> {
    let taps = taps(netns, links.interfaces.len(), ledger)?;
    let pairs = links.interfaces.iter().zip(taps);
    Ok(pairs.map(|(interface, tap)| NetDevice { tap, mac: interface.hwAddr.clone() }).collect())
}

/// Lets traffic flow between each interface of `links` and its device, both ways.
///
/// # Errors
/// `AlreadyExists` when somebody else handles an interface's traffic; else what failed on which device. Whatever was
/// made is in the ledger.
pub fn connect(netns: &Path, links: &GuestNetwork, devices: &[NetDevice], ledger: &Ledger) -> Result<()> {
    let mut pairs = links.interfaces.iter().zip(devices);
    pairs.try_for_each(|(interface, device)| redirect(netns, &interface.device, &device.tap, ledger))
}

#[cfg(test)]
mod tests;
