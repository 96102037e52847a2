//! Taps: the network devices whose other end is the VMM.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use rtnetlink::{Handle, LinkUnspec};

use super::namespace::{undo_within, within};
use super::redirect::index_of;
use crate::error::{Context, Error, Kind, Result};
use crate::ledger::{Ledger, Resource};

/// What our taps are called, before their number; with a number of three digits it just fits the kernel's 15 bytes.
pub(super) const PREFIX: &str = "microvm-tap";
/// No pod has more interfaces than a machine has slots for them.
const MOST: usize = 16;

/// Makes `count` taps in `netns`, up and persistent, and answers their names.
///
/// # Errors
/// `AlreadyExists` when a tap is there already: another sandbox uses the namespace. Whatever was made is in the
/// ledger.
pub fn taps(netns: &Path, count: usize, ledger: &Ledger) -> Result<Vec<String>> {
    if count > MOST {
        let text = format!("The pod has {count} network interfaces; {MOST} is the most");
        return Err(Error::new(Kind::InvalidArgument, text));
    }
    let names: Vec<String> = (0..count).map(|number| format!("{PREFIX}{number}")).collect();
    within(netns, async |handle| {
        for name in &names {
            create(&handle, netns, name, ledger).await?;
        }
        Ok(())
    })?;
    Ok(names)
}

async fn create(handle: &Handle, netns: &Path, name: &str, ledger: &Ledger) -> Result<()> {
    if index_of(handle, name).await?.is_some() {
        let text = format!(
            "{name} exists already in {}; another sandbox uses this network namespace",
            netns.display()
        );
        return Err(Error::new(Kind::AlreadyExists, text));
    }
    ledger.claim(Resource::Tap { netns: netns.to_owned(), name: name.to_owned() })?;
    let what = || format!("Could not make tap {name} in {}", netns.display());
    make_persistent(name).context(what)?;
    // The namespace's own kernel has no business on a tap; without this it sends router solicitations to the guest.
    let no_ipv6 = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    if let Err(error) = std::fs::write(&no_ipv6, "1") {
        log::debug!("{no_ipv6}: {error}");
    }
    let up = LinkUnspec::new_with_name(name).up().build();
    handle.link().set(up).execute().await.context(what)
}

/// Removes a tap. The absence of the tap or of its namespace is success.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_tap(netns: &Path, name: &str) -> Result<()> {
    undo_within(netns, async |handle| {
        let Some(index) = index_of(&handle, name).await? else { return Ok(()) };
        let what = || format!("Could not remove tap {name} in {}", netns.display());
        handle.link().del(index).execute().await.context(what)
    })
}

mod request {
    //! From the kernel's `if_tun.h`.
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(set_persistent, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));
}

/// Makes the tap stay when the descriptor that made it is closed.
fn make_persistent(name: &str) -> std::io::Result<()> {
    let device = open(name)?;
    // SAFETY: TUNSETPERSIST takes a plain integer.
    unsafe { request::set_persistent(device.as_raw_fd(), 1) }?;
    Ok(())
}

/// Opens the tap `name` in the network namespace of the calling thread, and makes it if there is none. One queue, as
/// QEMU opens it by name; frames carry a virtio header, so that checksums and segmentation are left to the far end.
pub(super) fn open(name: &str) -> std::io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // SAFETY: all bytes zero is a valid `ifreq`: integers, and a union of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(std::io::Error::other)?;
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: `request` is an `ifreq` with a terminated name, which is what TUNSETIFF reads and writes.
    unsafe { request::set_interface(device.as_raw_fd(), &raw const request) }?;
    Ok(device)
}
