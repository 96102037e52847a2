//! The network as a CNI plugin would have made it, in namespaces of the kernel that runs the tests. Needs root.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use agent_proto::types::IPFamily;

use super::*;
use crate::error::Kind;
use crate::ledger::{Ledger, Owner, Resource, Shim};

/// A pod's namespace and, as the other end of its veth pair, another one that stands for the node.
struct Pod {
    dir: tempfile::TempDir,
    ledger: Ledger,
}

impl Pod {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner {
            namespace: "test".into(),
            sandbox: "network".into(),
            bundle: PathBuf::new(),
            containerd_address: PathBuf::new(),
            ttrpc_address: String::new(),
            shim: Shim::current().unwrap(),
        };
        let ledger = Ledger::create(&dir.path().join("sandbox"), owner).unwrap();
        let pod = Pod { dir, ledger };
        create_netns(&pod.netns(), &pod.ledger).unwrap();
        create_netns(&pod.node(), &pod.ledger).unwrap();
        pod
    }

    fn netns(&self) -> PathBuf {
        self.dir.path().join("pod")
    }

    fn node(&self) -> PathBuf {
        self.dir.path().join("node")
    }

    /// Runs `ip` with `arguments` in `netns`; the tests may, the shim does not.
    fn ip(netns: &Path, arguments: &str) {
        let inside = format!("--net={}", netns.display());
        let status =
            Command::new("nsenter").arg(inside).arg("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    /// One interface with both families, a gateway outside of its subnet and a permanent neighbour.
    fn with_eth0(self) -> Self {
        let (pod, node) = (self.netns(), self.node());
        Self::ip(&pod, "link add eth0 address 02:00:00:00:00:07 mtu 1420 type veth peer name host0");
        Self::ip(&pod, &format!("link set host0 netns {}", node.display()));
        Self::ip(&node, "link set host0 mtu 1420 up");
        Self::ip(&pod, "link set eth0 up");
        Self::ip(&pod, "addr add 10.9.0.7/32 dev eth0");
        Self::ip(&pod, "addr add fd00:9::7/64 dev eth0 nodad");
        Self::ip(&pod, "route add 169.254.1.1 dev eth0 scope link");
        Self::ip(&pod, "route add default via 169.254.1.1 dev eth0 mtu 1400");
        Self::ip(&pod, "route add 10.20.0.0/16 via 10.8.0.1 dev eth0 onlink");
        Self::ip(&pod, "route add 10.21.0.0/16 dev eth0 scope link src 10.9.0.7");
        Self::ip(&pod, "-6 route add default via fd00:9::1 dev eth0");
        Self::ip(&pod, "neigh add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
        Self::ip(&pod, "neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud reachable");
        self
    }

    fn end(self) {
        let failures = self.ledger.release_all();
        assert!(failures.is_empty(), "{failures:?}");
        assert!(!self.netns().exists() && !self.node().exists());
    }
}

#[test]
fn discover_reads_what_cni_made_and_nothing_of_the_kernels_own() {
    let pod = Pod::new().with_eth0();
    let network = discover(&pod.netns()).unwrap();

    let [eth0] = &network.interfaces[..] else { panic!("{:?}", network.interfaces) };
    assert_eq!((eth0.device.as_str(), eth0.name.as_str()), ("eth0", "eth0"));
    assert_eq!((eth0.hwAddr.as_str(), eth0.mtu, eth0.raw_flags), ("02:00:00:00:00:07", 1420, 0));
    let addresses: Vec<_> = eth0
        .IPAddresses
        .iter()
        .map(|ip| (ip.family.enum_value().unwrap(), ip.address.as_str(), ip.mask.as_str()))
        .collect();
    assert_eq!(addresses, [(IPFamily::v4, "10.9.0.7", "32"), (IPFamily::v6, "fd00:9::7", "64")]);

    let routes: Vec<_> = network
        .routes
        .iter()
        .map(|r| (r.dest.as_str(), r.gateway.as_str(), r.source.as_str(), r.scope, r.flags, r.mtu))
        .collect();
    let link = 253;
    let onlink = 4;
    assert_eq!(
        routes,
        [
            ("10.21.0.0/16", "", "10.9.0.7", link, 0, 0),
            ("169.254.1.1/32", "", "", link, 0, 0),
            ("", "169.254.1.1", "", 0, 0, 1400),
            ("10.20.0.0/16", "10.8.0.1", "", 0, onlink, 0),
            ("", "fd00:9::1", "", 0, 0, 0),
        ]
    );
    assert!(network.routes.iter().all(|route| route.device == "eth0"));
    assert_eq!(network.routes[4].family.enum_value().unwrap(), IPFamily::v6);

    let [neighbor] = &network.neighbors[..] else { panic!("{:?}", network.neighbors) };
    assert_eq!(neighbor.toIPAddress.address, "169.254.1.1");
    assert_eq!((neighbor.device.as_str(), neighbor.lladdr.as_str()), ("eth0", "02:00:00:00:00:01"));
    assert_eq!(neighbor.state, 0x80);
    pod.end();
}

#[test]
fn frames_pass_between_interface_and_tap_both_ways_until_undone() {
    let pod = Pod::new().with_eth0();
    let links = discover(&pod.netns()).unwrap();
    let devices = plug(&pod.netns(), &links, &pod.ledger).unwrap();
    connect(&pod.netns(), &links, &devices, &pod.ledger).unwrap();
    let tap = NetDevice { tap: "microvm-tap0".into(), mac: "02:00:00:00:00:07".into() };
    assert_eq!(devices, [tap]);
    assert_eq!(
        discover(&pod.netns()).unwrap(),
        links,
        "our own tap must not be taken for one of the pod's interfaces"
    );

    let ports = Ports::open(&pod);
    assert_eq!(ports.node_to_guest(), 1, "frame from the node to the guest");
    assert_eq!(ports.guest_to_node(), 1, "frame from the guest to the node");

    let again = plug(&pod.netns(), &links, &pod.ledger).unwrap_err();
    assert_eq!(again.kind(), Kind::AlreadyExists, "{}", again.chain());

    remove_redirect(&pod.netns(), "eth0").unwrap();
    remove_redirect(&pod.netns(), "eth0").unwrap();
    assert_eq!(ports.node_to_guest(), 0);
    drop(ports);
    remove_tap(&pod.netns(), "microvm-tap0").unwrap();
    remove_tap(&pod.netns(), "microvm-tap0").unwrap();
    pod.end();
}

#[test]
fn a_namespace_that_is_gone_has_nothing_left_to_undo() {
    let pod = Pod::new();
    let netns = pod.netns();
    remove_redirect(&netns, "eth0").unwrap();
    remove_netns(&netns).unwrap();
    remove_netns(&netns).unwrap();
    remove_redirect(&netns, "eth0").unwrap();
    remove_tap(&netns, "microvm-tap0").unwrap();
    assert_eq!(discover(&netns).unwrap_err().kind(), Kind::NotFound);
    std::fs::write(&netns, "").unwrap();
    assert_eq!(discover(&netns).unwrap_err().kind(), Kind::NotFound, "a plain file is no namespace");
    std::fs::remove_file(&netns).unwrap();
    pod.end();
}

#[test]
fn the_hosts_own_network_is_never_touched() {
    let pod = Pod::new();
    let own = Path::new("/proc/self/ns/net");
    let errors = [
        discover(own).unwrap_err(),
        taps(own, 1, &pod.ledger).unwrap_err(),
        redirect(own, "lo", "lo", &pod.ledger).unwrap_err(),
        remove_redirect(own, "lo").unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.chain().contains("hostNetwork"), "{}", error.chain());
    }
    assert_eq!(pod.ledger.resources().len(), 2, "the two namespaces of the test");
    pod.end();
}

#[test]
fn claims_come_before_the_devices() {
    let pod = Pod::new().with_eth0();
    let links = discover(&pod.netns()).unwrap();
    let devices = plug(&pod.netns(), &links, &pod.ledger).unwrap();
    connect(&pod.netns(), &links, &devices, &pod.ledger).unwrap();
    let mine: Vec<_> = pod.ledger.resources().into_iter().skip(2).collect();
    let netns = pod.netns();
    assert_eq!(
        mine,
        [
            Resource::Tap { netns: netns.clone(), name: "microvm-tap0".into() },
            Resource::Redirect { netns: netns.clone(), device: "eth0".into() },
            Resource::Redirect { netns, device: "microvm-tap0".into() },
        ]
    );
    pod.end();
}

#[test]
fn an_interface_that_is_no_ethernet_device_is_refused_by_name() {
    let pod = Pod::new();
    Pod::ip(&pod.netns(), "tuntap add dev vpn0 mode tun");
    Pod::ip(&pod.netns(), "addr add 10.9.0.8/24 dev vpn0");
    Pod::ip(&pod.netns(), "link set vpn0 up");
    let error = discover(&pod.netns()).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.chain().contains("vpn0"), "{}", error.chain());
    pod.end();
}

/// The two ends a frame can come out of: the tap, opened as a VMM would, and a packet socket on the node's end.
struct Ports {
    guest: std::fs::File,
    node: std::os::fd::OwnedFd,
}

/// A broadcast frame of the experimental EtherType 0x88b5, which no kernel answers.
const FRAME: [u8; 60] = {
    let mut frame = [0xff; 60];
    frame[6] = 0x02;
    frame[12] = 0x88;
    frame[13] = 0xb5;
    frame
};
/// Size of the virtio header before each frame on a tap with `IFF_VNET_HDR`.
const HEADER: usize = 10;

impl Ports {
    fn open(pod: &Pod) -> Self {
        let guest = inside(&pod.netns(), || tap::open("microvm-tap0").unwrap());
        let node = inside(&pod.node(), packet_socket);
        Ports { guest, node }
    }

    /// How many copies of a frame that the node sends come out of the tap.
    fn node_to_guest(&self) -> usize {
        nix::sys::socket::send(raw(&self.node), &FRAME, nix::sys::socket::MsgFlags::empty()).unwrap();
        let mut buffer = [0; 2048];
        count(raw(&self.guest), || {
            let length = (&self.guest).read(&mut buffer).unwrap();
            buffer[HEADER..length] == FRAME
        })
    }

    /// How many copies of a frame that the guest sends arrive at the node.
    fn guest_to_node(&self) -> usize {
        let mut frame = vec![0; HEADER];
        frame.extend(FRAME);
        (&self.guest).write_all(&frame).unwrap();
        let mut buffer = [0; 2048];
        count(raw(&self.node), || {
            let length = nix::unistd::read(&self.node, &mut buffer).unwrap();
            buffer[..length] == FRAME
        })
    }
}

fn raw(fd: &impl std::os::fd::AsRawFd) -> i32 {
    fd.as_raw_fd()
}

/// Reads as long as something arrives within 200 ms, and counts what `is_ours`.
fn count(fd: i32, mut is_ours: impl FnMut() -> bool) -> usize {
    use nix::poll::{PollFd, PollFlags, poll};
    // SAFETY: the caller keeps the descriptor open during the call.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let mut count = 0;
    while poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], 200u16).unwrap() > 0 {
        count += usize::from(is_ours());
    }
    count
}

fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = std::fs::File::open(netns).unwrap();
    let enter = || {
        nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

/// A socket that sends and receives whole frames on `host0` and ignores its own.
fn packet_socket() -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
    let index = nix::net::if_::if_nametoindex("host0").unwrap();
    // SAFETY: all bytes zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = 0x88b5_u16.to_be();
    address.sll_ifindex = i32::try_from(index).unwrap();
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: `address` is a complete `sockaddr_ll` of the size given.
    let bound = unsafe { libc::bind(raw(&fd), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    fd
}
