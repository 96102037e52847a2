//! Neighbour entries: gateways that no ARP would find, as some CNI plugins set them.

use agent_proto::types::ARPNeighbor;
use futures::TryStreamExt as _;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourMessage, NeighbourState};

use super::{Network, absent_is_fine, index_of, parse};
use crate::error::{Context as _, Error, Kind, Result};

pub(super) async fn add(network: &Network, wanted: &[ARPNeighbor]) -> Result<()> {
    let indices = network.indices().await?;
    for neighbor in wanted {
        let address = neighbor.toIPAddress.as_ref().map(|to| to.address.as_str()).unwrap_or_default();
        let ip = parse::address(address)?;
        let index = index_of(&indices, &neighbor.device)?;
        let number = |value: i32, what: &str| {
            let text = format!("Neighbour {ip} has the impossible {what} {value}");
            u16::try_from(value).map_err(|_| Error::new(Kind::InvalidArgument, text))
        };
        // 0 is no state: an entry set by hand stays.
        let state = match number(neighbor.state, "state")? {
            0 => NeighbourState::Permanent,
            state => NeighbourState::from(state),
        };
        let flags = u8::try_from(number(neighbor.flags, "flags")?).unwrap_or_default();
        let mut request = network.netlink.neighbours().add(index, ip).state(state);
        request = request.flags(NeighbourFlags::from_bits_truncate(flags));
        if !neighbor.lladdr.is_empty() {
            request = request.link_layer_address(&parse::mac(&neighbor.lladdr)?);
        }
        request.replace().execute().await.context(|| format!("Could not add neighbour {ip}"))?;
    }
    Ok(())
}

/// Forgets every neighbour of an interface, those set by hand included.
pub(super) async fn remove_all(network: &Network, index: u32) -> Result<()> {
    let all: Vec<NeighbourMessage> = network
        .netlink
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .context(|| "Could not list neighbours")?;
    for message in all {
        // Multicast's own entries (noarp) are the kernel's.
        if message.header.ifindex == index && message.header.state != NeighbourState::Noarp {
            let removed = network.netlink.neighbours().del(message).execute().await;
            absent_is_fine(removed).context(|| "Could not remove a neighbour")?;
        }
    }
    Ok(())
}
