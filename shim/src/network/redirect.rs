//! The wire between an interface and its tap: whatever arrives at one leaves from the other. An `ingress` queueing
//! discipline on both, each with one filter that matches everything (`u32`, as `matchall` is missing in some
//! kernels) and redirects it (`mirred`). No bridge, no address and no firewall rule of the namespace is touched.

use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, LinkUnspec};

use super::namespace::{undo_within, within};
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// `ETH_P_ALL` of the kernel's `if_ether.h`, in network byte order as the filter wants it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Redirects everything between `interface` and `tap`, both ways, and gives the tap the interface's MTU.
///
/// # Errors
/// `NotFound` when one of the devices is missing; `AlreadyExists` when somebody else handles the traffic that
/// arrives at one of them. Whatever was made is in the ledger.
pub fn redirect(netns: &Path, interface: &str, tap: &str, ledger: &Ledger) -> Result<()> {
    within(netns, async |handle| {
        let outside = Device::find(&handle, netns, interface).await?;
        let inside = Device::find(&handle, netns, tap).await?;
        let same_mtu = LinkUnspec::new_with_index(inside.index).mtu(outside.mtu).build();
        let what = || format!("Could not set the MTU of {tap} to {}", outside.mtu);
        handle.link().set(same_mtu).execute().await.context(what)?;
        one_way(&handle, netns, &outside, &inside, ledger).await?;
        one_way(&handle, netns, &inside, &outside, ledger).await
    })
}

async fn one_way(handle: &Handle, netns: &Path, from: &Device, to: &Device, ledger: &Ledger) -> Result<()> {
    if has_ingress(handle, from).await? {
        let text = format!(
            "Traffic that arrives at {} in {} is handled by somebody else already (ingress qdisc)",
            from.name,
            netns.display()
        );
        return Err(Error::new(Kind::AlreadyExists, text));
    }
    ledger.claim(Resource::Redirect { netns: netns.to_owned(), device: from.name.clone() })?;
    let what = || {
        format!(
            "Could not redirect {} to {} in {}; the host needs the kernel modules sch_ingress, cls_u32 and \
             act_mirred",
            from.name,
            to.name,
            netns.display()
        )
    };
    let from = from.signed()?;
    handle.qdisc().add(from).ingress().execute().await.context(what)?;
    let mut filters = handle.traffic_filter(from);
    let filter = filters.add().parent(u32::from(INGRESS_QDISC)).protocol(ALL_PROTOCOLS);
    filter.redirect(to.index).context(what)?.execute().await.context(what)
}

/// Removes what [`redirect`] put on `device`. The absence of any of it is success.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_redirect(netns: &Path, device: &str) -> Result<()> {
    undo_within(netns, async |handle| {
        let Some(link) = find(&handle, device).await? else { return Ok(()) };
        let device = Device::from(&link, device);
        if !has_ingress(&handle, &device).await? {
            return Ok(());
        }
        let mut removal = handle.qdisc().del(device.signed()?);
        removal.message_mut().header.parent = TcHandle::INGRESS;
        removal.message_mut().header.handle = INGRESS_QDISC;
        let what = || format!("Could not remove the redirect of {} in {}", device.name, netns.display());
        removal.execute().await.context(what)
    })
}

/// Handle `ffff:`, which the kernel gives every ingress queueing discipline.
const INGRESS_QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// Whether `device` has an ingress (or `clsact`) queueing discipline, ours or not.
async fn has_ingress(handle: &Handle, device: &Device) -> Result<bool> {
    let what = || format!("Could not list the queueing disciplines of {}", device.name);
    let mut list = handle.qdisc().get().index(device.signed()?).execute();
    let mut found = false;
    while let Some(discipline) = list.try_next().await.context(what)? {
        let same = u32::try_from(discipline.header.index) == Ok(device.index);
        found |= same && discipline.header.handle == INGRESS_QDISC;
    }
    Ok(found)
}

/// A link as far as redirecting needs to know it.
struct Device {
    name: String,
    index: u32,
    mtu: u32,
}

impl Device {
    async fn find(handle: &Handle, netns: &Path, name: &str) -> Result<Self> {
        let link = find(handle, name).await?.ok_or_else(|| {
            let text = format!("There is no network interface {name} in {}", netns.display());
            Error::new(Kind::NotFound, text)
        })?;
        Ok(Self::from(&link, name))
    }

    fn from(link: &LinkMessage, name: &str) -> Self {
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Self { name: name.to_owned(), index: link.header.index, mtu: mtu.unwrap_or(1500) }
    }

    /// The index as traffic control spells it.
    fn signed(&self) -> Result<i32> {
        i32::try_from(self.index).context(|| format!("Index of {} is too large", self.name))
    }
}

/// The link `name`, if there is one.
async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        other => other.context(|| format!("Could not look for network interface {name}")),
    }
}

/// Index of the link `name`, if there is one.
pub(super) async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>> {
    Ok(find(handle, name).await?.map(|link| link.header.index))
}
