//! Addresses of interfaces.

use std::collections::BTreeSet;
use std::net::IpAddr;

use agent_proto::types::{IPAddress, IPFamily, Interface};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use super::{Network, parse};
use crate::error::{Context as _, Result};

pub(super) type Prefix = (IpAddr, u8);

impl Network {
    pub(super) async fn addresses(&self) -> Result<Vec<AddressMessage>> {
        self.netlink.address().get().execute().try_collect().await.context(|| "Could not list addresses")
    }

    /// Gives an interface exactly these addresses, but for the link-local one that the kernel made by itself.
    pub(super) async fn set_addresses(&self, index: u32, wanted: &BTreeSet<Prefix>) -> Result<()> {
        for message in self.addresses().await? {
            let Some(prefix) = prefix_of(&message) else { continue };
            let is_kernels = prefix.0.is_ipv6() && message.header.scope == AddressScope::Link;
            if message.header.index == index && !is_kernels && !wanted.contains(&prefix) {
                let text = || format!("Could not remove address {}/{}", prefix.0, prefix.1);
                // Removing an IPv4 address may take others of its network along.
                super::absent_is_fine(self.netlink.address().del(message).execute().await).context(text)?;
            }
        }
        for &(ip, bits) in wanted {
            let mut request = self.netlink.address().add(index, ip, bits).replace();
            if ip.is_ipv6() {
                // The host's CNI has found it unique already; undetected, it could not be used for a second or so.
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await.context(|| format!("Could not add address {ip}/{bits}"))?;
        }
        Ok(())
    }
}

/// What an interface shall have.
pub(super) fn wanted(interface: &Interface) -> Result<BTreeSet<Prefix>> {
    let read = |address: &IPAddress| {
        let ip = parse::address(&address.address)?;
        Ok((ip, parse::mask(&address.mask, ip)?))
    };
    interface.IPAddresses.iter().map(read).collect()
}

pub(super) fn prefix_of(message: &AddressMessage) -> Option<Prefix> {
    let (mut local, mut other) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // Of a point-to-point link, "address" is the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            _ => {}
        }
    }
    local.or(other).map(|ip| (ip, message.header.prefix_len))
}

pub(super) fn describe((ip, bits): Prefix) -> IPAddress {
    IPAddress {
        family: family(ip).into(),
        address: ip.to_string(),
        mask: bits.to_string(),
        ..Default::default()
    }
}

pub(super) fn family(ip: IpAddr) -> IPFamily {
    if ip.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }
}
