//! Ends TCP connections from outside their processes, through the kernel's sock_diag.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::error::{Context as _, Error, Kind, Result};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Bytes of nlmsghdr, of inet_diag_sockid, and of the start of inet_diag_msg before that.
const HEADER: usize = 16;
const ID: usize = 48;
const BEFORE_ID: usize = 4;
/// All TCP states but LISTEN (10) and, as nobody waits in them, TIME_WAIT (6) and CLOSE (7).
const STATES: u32 = 0xfff & !(1 << 10) & !(1 << 6) & !(1 << 7);
/// The kernel answers at once; a netlink that does not must not hold up a restore.
const PATIENCE: i64 = 5;

/// Ends each TCP connection that is not within the guest; answers how many. Blocks shortly.
///
/// # Errors
/// If the kernel has no sock_diag for TCP, or cannot destroy sockets.
pub(super) fn abort_connections() -> Result<usize> {
    let netlink = open()?;
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or_default();
        for id in connections(&netlink, family)? {
            match destroy(&netlink, family, &id) {
                Ok(()) => ended += 1,
                // It ended by itself.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ended)
}

fn open() -> Result<OwnedFd> {
    let text = || "Could not open sock_diag";
    let flags = SockFlag::SOCK_CLOEXEC;
    let protocol = SockProtocol::NetlinkSockDiag;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).context(text)?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE)).context(text)?;
    Ok(netlink)
}

fn connections(netlink: &OwnedFd, family: u8) -> Result<Vec<[u8; ID]>> {
    send(netlink, (SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP), &request(family, &[0; ID]))?;
    let mut found = Vec::new();
    receive(netlink, |body| {
        let id = body.get(BEFORE_ID..BEFORE_ID + ID).and_then(|id| <[u8; ID]>::try_from(id).ok());
        found.extend(id.filter(|id| !is_local(family, id)));
    })?;
    Ok(found)
}

fn destroy(netlink: &OwnedFd, family: u8, id: &[u8; ID]) -> Result<()> {
    send(netlink, (SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK), &request(family, id))?;
    receive(netlink, |_| {})
}

/// Whether a connection's own end is on loopback: then the other end is in the guest too.
fn is_local(family: u8, id: &[u8; ID]) -> bool {
    // Ports, 2 bytes each, come first; then the own and the peer's address, 16 bytes each.
    let own: [u8; 16] = std::array::from_fn(|at| id[4 + at]);
    let ip = if i32::from(family) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::new(own[0], own[1], own[2], own[3]))
    } else {
        IpAddr::from(Ipv6Addr::from(own)).to_canonical()
    };
    ip.is_loopback()
}

/// inet_diag_req_v2.
fn request(family: u8, id: &[u8; ID]) -> Vec<u8> {
    let tcp = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    let mut bytes = vec![family, tcp, 0, 0];
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend(id);
    bytes
}

fn send(netlink: &OwnedFd, (kind, flags): (u16, u16), body: &[u8]) -> Result<()> {
    let length = u32::try_from(HEADER + body.len()).context(|| "A sock_diag request is too long")?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number and port: one request at a time on a socket of our own.
    message.extend([0; 8]);
    message.extend(body);
    let kernel = NetlinkAddr::new(0, 0);
    sendmsg(netlink.as_raw_fd(), &[IoSlice::new(&message)], &[], MsgFlags::empty(), Some(&kernel))
        .context(|| "Could not ask sock_diag")?;
    Ok(())
}

/// Takes the messages of one answer, up to its end.
fn receive(netlink: &OwnedFd, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .context(|| "sock_diag did not answer")?;
        let mut rest = &buffer[..length];
        while let Some((kind, body, after)) = next(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return answer(body),
                _ => each(body),
            }
            rest = after;
        }
    }
}

/// The first message of some: its type, its body and what follows it.
fn next(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    let body = bytes.get(HEADER..length)?;
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body, after))
}

fn answer(body: &[u8]) -> Result<()> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 {
        return Ok(());
    }
    let error = nix::errno::Errno::from_raw(-code);
    let (kind, why) = match error {
        nix::errno::Errno::ENOENT => {
            (Kind::NotFound, "sock_diag knows no such socket, or the kernel lacks it for TCP")
        }
        nix::errno::Errno::EOPNOTSUPP => (Kind::Unimplemented, "the kernel cannot destroy sockets"),
        _ => (Kind::Internal, "sock_diag failed"),
    };
    Err(Error::caused(kind, why, error))
}
