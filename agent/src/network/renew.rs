//! The network of a restored or cloned guest: nothing of the old pod's may be left, and nothing may leave before.

use agent_proto::types::{ARPNeighbor, Interface, Route};
use rtnetlink::LinkUnspec;

use super::{Network, name, neighbor, route, sockets};
use crate::error::{Context as _, Result};

impl Network {
    /// Replaces all addresses, routes and neighbours. Connections of before end with an error in the container; the
    /// interfaces are down by then, so that no peer hears of it: the guest that was saved may still be running and
    /// talking to the same peers.
    ///
    /// # Errors
    /// The first step that failed, with the interfaces down or half set up: the guest must not be used then.
    pub async fn renew(
        &self,
        interfaces: &[Interface],
        routes: &[Route],
        neighbors: &[ARPNeighbor],
    ) -> Result<()> {
        let links = self.links().await?;
        for link in links.iter().filter(|link| name(link) != "lo") {
            let (index, name) = (link.header.index, name(link));
            let down = LinkUnspec::new_with_index(index).down().build();
            self.netlink
                .link()
                .set(down)
                .execute()
                .await
                .context(|| format!("Could not take down {name}"))?;
            self.set_addresses(index, &Default::default()).await?;
            neighbor::remove_all(self, index).await?;
        }
        route::remove_all(self).await?;
        crate::storage::blocking(|| {
            match sockets::abort_connections() {
                Ok(count) => log::debug!("Ended {count} TCP connections of before the restore"),
                // Without the kernel's help they end when their retransmissions time out.
                Err(error) => log::warn!("TCP connections of before the restore linger: {}", error.chain()),
            }
            Ok(())
        })
        .await?;
        for interface in interfaces {
            self.update_interface(interface).await?;
        }
        route::add(self, routes).await?;
        neighbor::add(self, neighbors).await
    }
}
