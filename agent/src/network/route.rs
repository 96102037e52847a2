//! Routes of the main table.

use std::net::IpAddr;

use agent_proto::types::{IPFamily, Route};
use futures::TryStreamExt as _;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};

use super::{Network, absent_is_fine, index_of, parse};
use crate::error::{Context as _, Error, Kind, Result};

/// Adds routes: first those that need no gateway, which make the gateways of the others reachable.
pub(super) async fn add(network: &Network, wanted: &[Route]) -> Result<()> {
    let indices = network.indices().await?;
    let (direct, through): (Vec<_>, Vec<_>) = wanted.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(through) {
        let text = || format!("Could not add route to {:?} through {:?}", destination(route), route.device);
        let message = message(route, index_of(&indices, &route.device)?)
            .map_err(|error| Error::caused(error.kind(), text(), error))?;
        network.netlink.route().add(message).replace().execute().await.context(text)?;
    }
    Ok(())
}

pub(super) async fn list(network: &Network) -> Result<Vec<Route>> {
    let indices = network.indices().await?;
    let name = |index: u32| indices.iter().find(|(_, known)| **known == index).map(|(name, _)| name.clone());
    let messages = messages(network).await?;
    Ok(messages.iter().filter_map(|message| describe(message, &name)).collect())
}

/// Removes each route that somebody set; those of addresses go with them.
pub(super) async fn remove_all(network: &Network) -> Result<()> {
    for message in messages(network).await? {
        if message.header.protocol != RouteProtocol::Kernel {
            let text = || "Could not remove a route";
            absent_is_fine(network.netlink.route().del(message).execute().await).context(text)?;
        }
    }
    Ok(())
}

async fn messages(network: &Network) -> Result<Vec<RouteMessage>> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessageBuilder::<IpAddr>::new().build();
        filter.header.address_family = family;
        let found = network.netlink.route().get(filter).execute().try_collect::<Vec<_>>().await;
        all.extend(found.context(|| "Could not list routes")?);
    }
    all.retain(|message| {
        message.header.table == RouteHeader::RT_TABLE_MAIN && message.header.kind == RouteType::Unicast
    });
    Ok(all)
}

fn destination(route: &Route) -> &str {
    if route.dest.is_empty() { "default" } else { &route.dest }
}

fn message(route: &Route, index: u32) -> Result<RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    let scope = u8::try_from(route.scope);
    let wrong = || Error::new(Kind::InvalidArgument, format!("Route scope {} is impossible", route.scope));
    builder = builder.scope(RouteScope::from(scope.map_err(|_| wrong())?));
    let mut message = builder.build();
    let is_v6 = route.family.enum_value_or_default() == IPFamily::v6;
    message.header.address_family = if is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    if !matches!(destination(route), "default") {
        let (ip, bits) = parse::prefix(&route.dest)?;
        one_family(ip, is_v6)?;
        message.header.destination_prefix_length = bits;
        message.attributes.push(RouteAttribute::Destination(ip.into()));
    }
    if let Some(gateway) = parse::optional(&route.gateway)? {
        one_family(gateway, is_v6)?;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = parse::optional(&route.source)? {
        one_family(source, is_v6)?;
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.mtu > 0 {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    // Others that a dump shows (dead, linkdown) are states, not wishes.
    message.header.flags = RouteFlags::from_bits_truncate(route.flags) & RouteFlags::Onlink;
    Ok(message)
}

fn one_family(ip: IpAddr, is_v6: bool) -> Result<()> {
    if ip.is_ipv6() == is_v6 {
        return Ok(());
    }
    let family = if is_v6 { "v6" } else { "v4" };
    Err(Error::new(Kind::InvalidArgument, format!("{ip} is not of the route's family {family}")))
}

fn describe(message: &RouteMessage, name: &impl Fn(u32) -> Option<String>) -> Option<Route> {
    let header = &message.header;
    let is_v6 = header.address_family == AddressFamily::Inet6;
    let mut route = Route {
        scope: u32::from(u8::from(header.scope)),
        family: if is_v6 { IPFamily::v6 } else { IPFamily::v4 }.into(),
        flags: header.flags.bits(),
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.dest = format!("{}/{}", show(to)?, header.destination_prefix_length);
            }
            RouteAttribute::Gateway(gateway) => route.gateway = show(gateway)?,
            RouteAttribute::PrefSource(source) => route.source = show(source)?,
            RouteAttribute::Oif(index) => route.device = name(*index)?,
            RouteAttribute::Metrics(metrics) => {
                let mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
                route.mtu = mtu.unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(route)
}

fn show(address: &RouteAddress) -> Option<String> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.to_string()),
        RouteAddress::Inet6(ip) => Some(ip.to_string()),
        _ => None,
    }
}
