//! Reads from a network namespace what its guest is to have: interfaces with their addresses, routes, neighbours.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use agent_proto::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};
use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteNextHopFlags,
    RouteProtocol, RouteType,
};

use super::GuestNetwork;
use super::namespace::within;
use super::tap::PREFIX;
use crate::error::{Context, Error, Kind, Result};

/// Reads the network of `netns`: every Ethernet interface that is up, except our own taps.
///
/// Left out is what the guest's kernel makes itself (link-local addresses, the routes of its own addresses) and
/// what the agent's protocol has no words for: routes other than unicast ones, and all tables but `main`.
///
/// # Errors
/// `NotFound` without a namespace; `InvalidArgument` when an interface has addresses but is no Ethernet device.
pub fn discover(netns: &Path) -> Result<GuestNetwork> {
    within(netns, async |handle| {
        let mut network = GuestNetwork::default();
        let mut names = BTreeMap::new();
        let addresses = addresses(&handle).await?;
        for link in links(&handle).await? {
            let own = addresses.get(&link.header.index).cloned().unwrap_or_default();
            if let Some(interface) = interface(&link, own)? {
                names.insert(link.header.index, interface.device.clone());
                network.interfaces.push(interface);
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            network.routes.extend(routes(&handle, family, &names).await?);
            network.neighbors.extend(neighbors(&handle, family, &names).await?);
        }
        Ok(network)
    })
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    let mut links: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .context(|| "Could not list the network interfaces".into())?;
    links.sort_by_key(|link| link.header.index);
    Ok(links)
}

/// The interface as the agent is told about it; none if the guest does not get it.
fn interface(link: &LinkMessage, addresses: Vec<IPAddress>) -> Result<Option<Interface>> {
    let mut interface = Interface { IPAddresses: addresses, ..Interface::default() };
    let mut is_tap = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.device.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = u64::from(*mtu),
            LinkAttribute::Address(address) => interface.hwAddr = mac(address),
            LinkAttribute::LinkInfo(infos) => {
                is_tap = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun)));
            }
            _ => {}
        }
    }
    let flags = link.header.flags;
    let ours = is_tap && interface.device.starts_with(PREFIX);
    if flags.contains(LinkFlags::Loopback) || !flags.contains(LinkFlags::Up) || ours {
        return Ok(None);
    }
    if link.header.link_layer_type != LinkLayerType::Ether {
        if interface.IPAddresses.is_empty() {
            return Ok(None);
        }
        let text = format!(
            "Network interface {} of the pod is of type {:?}; a virtual machine can have Ethernet interfaces only",
            interface.device, link.header.link_layer_type
        );
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    interface.name.clone_from(&interface.device);
    interface.raw_flags = (flags & LinkFlags::Noarp).bits();
    Ok(Some(interface))
}

/// Addresses by the index of their interface.
async fn addresses(handle: &Handle) -> Result<BTreeMap<u32, Vec<IPAddress>>> {
    let mut found: BTreeMap<u32, Vec<IPAddress>> = BTreeMap::new();
    let mut list = handle.address().get().execute();
    while let Some(message) = list.try_next().await.context(|| "Could not list the addresses".into())? {
        if let Some(address) = address(&message) {
            found.entry(message.header.index).or_default().push(address);
        }
    }
    Ok(found)
}

fn address(message: &AddressMessage) -> Option<IPAddress> {
    let mut own = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface `Address` is the far end, and `Local` follows.
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let own = own?;
    let is_link_local = matches!(own, IpAddr::V6(address) if address.is_unicast_link_local());
    let is_v6_temporary = own.is_ipv6() && flags.contains(AddressFlags::Secondary);
    if is_link_local || is_v6_temporary {
        return None;
    }
    Some(IPAddress {
        family: family(own).into(),
        address: own.to_string(),
        mask: message.header.prefix_len.to_string(),
        ..IPAddress::default()
    })
}

/// Routes of the main table over the interfaces in `names`; those without a gateway first, then by metric, so that
/// the one that wins here comes first there too.
async fn routes(handle: &Handle, family: AddressFamily, names: &BTreeMap<u32, String>) -> Result<Vec<Route>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let mut found: Vec<(u32, Route)> = Vec::new();
    let mut list = handle.route().get(request).execute();
    while let Some(message) = list.try_next().await.context(|| "Could not list the routes".into())? {
        found.extend(route(&message, names));
    }
    found.sort_by_key(|(metric, route)| (!route.gateway.is_empty(), *metric));
    Ok(found.into_iter().map(|(_, route)| route).collect())
}

/// The route as the agent is told about it, after its metric.
fn route(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<(u32, Route)> {
    let header = &message.header;
    let wanted = header.table == RouteHeader::RT_TABLE_MAIN
        && header.kind == RouteType::Unicast
        && header.protocol != RouteProtocol::Kernel;
    if !wanted {
        return None;
    }
    let mut route = Route {
        family: match header.address_family {
            AddressFamily::Inet6 => IPFamily::v6.into(),
            _ => IPFamily::v4.into(),
        },
        scope: u32::from(u8::from(header.scope)),
        flags: (header.flags & RouteFlags::Onlink).bits(),
        ..Route::default()
    };
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.dest = format!("{}/{}", ip(to)?, header.destination_prefix_length);
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway)?.to_string(),
            RouteAttribute::PrefSource(source) => route.source = ip(source)?.to_string(),
            RouteAttribute::Oif(index) => route.device = names.get(index)?.clone(),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Metrics(metrics) => {
                for each in metrics {
                    if let RouteMetric::Mtu(mtu) = each {
                        route.mtu = *mtu;
                    }
                }
            }
            // Of several equal gateways the protocol has room for one.
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                route.device = names.get(&hop.interface_index)?.clone();
                route.flags = u32::from((hop.flags & RouteNextHopFlags::Onlink).bits());
                for attribute in &hop.attributes {
                    if let RouteAttribute::Gateway(gateway) = attribute {
                        route.gateway = ip(gateway)?.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    let is_link_local = route.dest.to_ascii_lowercase().starts_with("fe80:");
    (!route.device.is_empty() && !is_link_local).then_some((metric, route))
}

/// Permanent neighbours on the interfaces in `names`; the others the guest's kernel learns itself.
async fn neighbors(
    handle: &Handle,
    family: AddressFamily,
    names: &BTreeMap<u32, String>,
) -> Result<Vec<ARPNeighbor>> {
    let mut found = Vec::new();
    let mut list = handle.neighbours().get().set_address_family(family).execute();
    while let Some(message) = list.try_next().await.context(|| "Could not list the neighbours".into())? {
        found.extend(neighbor(&message, names));
    }
    Ok(found)
}

fn neighbor(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<ARPNeighbor> {
    let device = names.get(&message.header.ifindex)?;
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbor = ARPNeighbor {
        device: device.clone(),
        state: i32::from(u16::from(message.header.state)),
        flags: i32::from(message.header.flags.bits()),
        ..ARPNeighbor::default()
    };
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => neighbor.lladdr = mac(bytes),
            _ => {}
        }
    }
    let address = address?;
    neighbor.toIPAddress = Some(IPAddress {
        family: family(address).into(),
        address: address.to_string(),
        ..IPAddress::default()
    })
    .into();
    (!neighbor.lladdr.is_empty()).then_some(neighbor)
}

fn family(address: IpAddr) -> IPFamily {
    if address.is_ipv6() { IPFamily::v6 } else { IPFamily::v4 }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// `aa:bb:cc:dd:ee:ff`
fn mac(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}
