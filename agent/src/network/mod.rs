//! The guest's network as the host describes it: interfaces, routes, neighbours, and their renewal after a restore.
//! Called by `rpc`; speaks netlink and nothing else.

use std::collections::BTreeMap;

use agent_proto::types::{ARPNeighbor, Interface, Route};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, new_connection};

use crate::error::{Context as _, Error, Kind, Result};

mod address;
mod interface;
mod neighbor;
mod parse;
mod renew;
mod route;
mod sockets;
mod usage;

/// The network namespace that the agent started in, which all containers share.
#[derive(Debug, Clone)]
pub struct Network {
    netlink: Handle,
}

impl Network {
    /// Opens netlink in the current namespace; its task belongs to the current runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start() -> Result<Self> {
        let (connection, netlink, _) = new_connection().context(|| "Could not open netlink")?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// Takes the loopback interface into use.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn start_loopback(&self) -> Result<()> {
        let up = LinkUnspec::new_with_name("lo").up().build();
        self.netlink.link().set(up).execute().await.context(|| "Could not take lo into use")
    }

    /// All interfaces but loopback.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn interfaces(&self) -> Result<Vec<Interface>> {
        let addresses = self.addresses().await?;
        let links = self.links().await?;
        let others = links.iter().filter(|link| name(link) != "lo");
        Ok(others.map(|link| interface::describe(link, &addresses)).collect())
    }

    /// Makes an interface what the host says: found by its MAC, else by its name, then given that name, MAC, MTU and
    /// exactly these addresses, and taken into use. Answers what it is then.
    ///
    /// # Errors
    /// `NotFound` if there is no such interface, `InvalidArgument` for values that make no sense, else the kernel's.
    pub async fn update_interface(&self, wanted: &Interface) -> Result<Interface> {
        interface::update(self, wanted).await?;
        let at = interface::target_name(wanted);
        let all = self.interfaces().await?;
        let gone = || Error::new(Kind::NotFound, format!("Interface {at} is gone again"));
        all.into_iter().find(|interface| interface.name == at).ok_or_else(gone)
    }

    /// Adds these routes to the main table, in place of equal ones; answers all there are then.
    ///
    /// # Errors
    /// `InvalidArgument` for one that makes no sense, `NotFound` for an unknown device, else the kernel's.
    pub async fn update_routes(&self, wanted: &[Route]) -> Result<Vec<Route>> {
        route::add(self, wanted).await?;
        self.routes().await
    }

    /// The routes of the main table.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn routes(&self) -> Result<Vec<Route>> {
        route::list(self).await
    }

    /// Adds these entries to the neighbour tables, in place of equal ones.
    ///
    /// # Errors
    /// As [`Network::update_routes`].
    pub async fn add_neighbors(&self, wanted: &[ARPNeighbor]) -> Result<()> {
        neighbor::add(self, wanted).await
    }

    async fn links(&self) -> Result<Vec<LinkMessage>> {
        self.netlink.link().get().execute().try_collect().await.context(|| "Could not list interfaces")
    }

    /// Interfaces' indices by their names.
    async fn indices(&self) -> Result<BTreeMap<String, u32>> {
        Ok(self.links().await?.iter().map(|link| (name(link), link.header.index)).collect())
    }
}

fn name(link: &LinkMessage) -> String {
    let found = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    found.unwrap_or_default()
}

fn index_of(indices: &BTreeMap<String, u32>, device: &str) -> Result<u32> {
    let unknown = || Error::new(Kind::NotFound, format!("There is no interface {device:?} in the guest"));
    indices.get(device).copied().ok_or_else(unknown)
}

/// What was to be removed may have gone with something else.
fn absent_is_fine(
    result: std::result::Result<(), rtnetlink::Error>,
) -> std::result::Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if [-libc::ESRCH, -libc::ENOENT, -libc::EADDRNOTAVAIL].contains(&message.raw_code()) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
