//! One interface: what it is, and making it what the host wants.

use agent_proto::types::Interface;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::{Network, address, name, parse};
use crate::error::{Context as _, Error, Kind, Result};

/// Longest name the kernel takes (IFNAMSIZ - 1).
const LONGEST_NAME: usize = 15;
/// Of `raw_flags`, the one the protocol uses: IFF_NOARP.
const NO_ARP: u32 = 0x80;

pub(super) fn describe(link: &LinkMessage, addresses: &[AddressMessage]) -> Interface {
    let mut interface = Interface { device: name(link), name: name(link), ..Interface::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = u64::from(*mtu),
            LinkAttribute::Address(bytes) => interface.hwAddr = parse::show_mac(bytes),
            _ => {}
        }
    }
    let own = addresses.iter().filter(|message| message.header.index == link.header.index);
    interface.IPAddresses = own.filter_map(address::prefix_of).map(address::describe).collect();
    if link.header.flags.contains(LinkFlags::Noarp) {
        interface.raw_flags |= NO_ARP;
    }
    interface
}

/// The name it shall have. kata's runtime fills both fields with it.
pub(super) fn target_name(wanted: &Interface) -> &str {
    if wanted.name.is_empty() { &wanted.device } else { &wanted.name }
}

pub(super) async fn update(network: &Network, wanted: &Interface) -> Result<()> {
    let target = target_name(wanted);
    if target.is_empty() || target.len() > LONGEST_NAME || target.contains(['/', ' ', ':']) {
        let text =
            format!("Interface name {target:?} must have 1 to {LONGEST_NAME} characters, no / : or space");
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let addresses = address::wanted(wanted)?;
    let link = find(network, wanted).await?;
    let index = link.header.index;
    let text = || format!("Could not set up interface {target}");

    // The kernel renames an interface, or gives it another MAC, only while it is down.
    let down = LinkUnspec::new_with_index(index).down().build();
    network.netlink.link().set(down).execute().await.context(text)?;
    let mut change = LinkUnspec::new_with_index(index).arp(wanted.raw_flags & NO_ARP == 0);
    if !wanted.hwAddr.is_empty() {
        change = change.address(parse::mac(&wanted.hwAddr)?);
    }
    if wanted.mtu > 0 {
        let wrong = || Error::new(Kind::InvalidArgument, format!("MTU {} is impossible", wanted.mtu));
        change = change.mtu(u32::try_from(wanted.mtu).map_err(|_| wrong())?);
    }
    if name(&link) != target {
        make_room(network, target).await?;
        change = change.name(target);
    }
    network.netlink.link().set(change.build()).execute().await.context(text)?;
    network.set_addresses(index, &addresses).await.context(text)?;
    let up = LinkUnspec::new_with_index(index).up().build();
    network.netlink.link().set(up).execute().await.context(text)
}

/// By its MAC, which the VMM gave it; after a restore into another pod that is the old one, and the name counts.
async fn find(network: &Network, wanted: &Interface) -> Result<LinkMessage> {
    let links = network.links().await?;
    let mac = if wanted.hwAddr.is_empty() { None } else { Some(parse::mac(&wanted.hwAddr)?) };
    let has_mac = |link: &&LinkMessage| {
        let is_it = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(own) if Some(own) == mac.as_ref());
        link.attributes.iter().any(is_it)
    };
    let has_name = |link: &&LinkMessage| [&wanted.device, &wanted.name].contains(&&name(link));
    let found = links.iter().find(has_mac).or_else(|| links.iter().find(has_name));
    found.cloned().ok_or_else(|| {
        let have: Vec<String> = links.iter().map(|link| format!("{:?}", name(link))).collect();
        let text = format!(
            "No interface of the guest has MAC {:?} or name {:?}; it has {}",
            wanted.hwAddr,
            wanted.device,
            have.join(", ")
        );
        Error::new(Kind::NotFound, text)
    })
}

/// Two interfaces may have to swap their names: the one that has the wanted name gives it up.
async fn make_room(network: &Network, target: &str) -> Result<()> {
    let Some(&index) = network.indices().await?.get(target) else { return Ok(()) };
    let text = || format!("Could not free the interface name {target}");
    let aside = LinkUnspec::new_with_index(index).down().name(format!("was{index}")).build();
    network.netlink.link().set(aside).execute().await.context(text)
}
