//! Tests of the network in a network namespace of their own, with a veth pair whose far end stays unused.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use agent_proto::types::{IPAddress, IPFamily};
use rtnetlink::{LinkUnspec, LinkVeth};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::isolated;

const MAC: &str = "02:00:00:00:00:01";
const OTHER_MAC: &str = "02:00:00:00:00:77";

/// A guest with one interface and its MAC, as the VMM makes it.
async fn guest() -> Network {
    let network = Network::start().unwrap();
    network.start_loopback().await.unwrap();
    let veth = LinkVeth::new("nic", "far").address(parse::mac(MAC).unwrap()).build();
    network.netlink.link().add(veth).execute().await.unwrap();
    let far = LinkUnspec::new_with_name("far").up().build();
    network.netlink.link().set(far).execute().await.unwrap();
    network
}

fn ip(address: &str, mask: &str) -> IPAddress {
    let family = if address.contains(':') { IPFamily::v6 } else { IPFamily::v4 };
    IPAddress { family: family.into(), address: address.into(), mask: mask.into(), ..Default::default() }
}

fn interface(mac: &str, addresses: &[(&str, &str)]) -> Interface {
    Interface {
        device: "eth0".into(),
        name: "eth0".into(),
        hwAddr: mac.into(),
        mtu: 1400,
        IPAddresses: addresses.iter().map(|(address, mask)| ip(address, mask)).collect(),
        ..Default::default()
    }
}

fn route(dest: &str, gateway: &str) -> Route {
    let family = if format!("{dest}{gateway}").contains(':') { IPFamily::v6 } else { IPFamily::v4 };
    Route {
        dest: dest.into(),
        gateway: gateway.into(),
        device: "eth0".into(),
        family: family.into(),
        ..Default::default()
    }
}

fn neighbor(address: &str, mac: &str) -> ARPNeighbor {
    ARPNeighbor {
        toIPAddress: Some(ip(address, "")).into(),
        device: "eth0".into(),
        lladdr: mac.into(),
        state: 0x80,
        ..Default::default()
    }
}

async fn eth0(network: &Network) -> Interface {
    network.interfaces().await.unwrap().into_iter().find(|interface| interface.name == "eth0").unwrap()
}

/// Addresses that the kernel did not make by itself, sorted.
fn addresses(interface: &Interface) -> Vec<String> {
    let shown = interface.IPAddresses.iter().map(|ip| format!("{}/{}", ip.address, ip.mask));
    let mut shown: Vec<_> = shown.filter(|text| !text.starts_with("fe80")).collect();
    shown.sort();
    shown
}

async fn neighbors() -> String {
    // Of the thread's namespace, unlike /proc/net.
    tokio::fs::read_to_string("/proc/thread-self/net/arp").await.unwrap()
}

#[test]
fn an_interface_becomes_exactly_what_the_host_says() {
    isolated(|| async {
        let network = guest().await;
        let wanted = interface(MAC, &[("10.1.0.5", "24"), ("10.1.0.6", "255.255.255.0"), ("fd00::5", "64")]);
        let got = network.update_interface(&wanted).await.unwrap();
        assert_eq!(addresses(&got), ["10.1.0.5/24", "10.1.0.6/24", "fd00::5/64"]);
        assert_eq!((got.name.as_str(), got.mtu, got.hwAddr.as_str()), ("eth0", 1400, MAC));
        // Again, with fewer: what is not named goes.
        let got = network.update_interface(&interface(MAC, &[("10.1.0.6", "24")])).await.unwrap();
        assert_eq!(addresses(&got), ["10.1.0.6/24"]);
        // Found by its name, it gets another MAC; found by its MAC, another name, which another interface has.
        let got = network.update_interface(&interface(OTHER_MAC, &[])).await.unwrap();
        assert_eq!((got.hwAddr.as_str(), addresses(&got).len()), (OTHER_MAC, 0));
        let swapped = Interface { device: "far".into(), name: "far".into(), ..interface(OTHER_MAC, &[]) };
        network.update_interface(&swapped).await.unwrap();
        let all = network.interfaces().await.unwrap();
        let far = all.iter().find(|interface| interface.name == "far").unwrap();
        assert_eq!(far.hwAddr, OTHER_MAC);
        assert!(all.iter().any(|interface| interface.name.starts_with("was")), "{all:?}");
    });
}

#[test]
fn what_makes_no_sense_is_refused_and_named() {
    isolated(|| async {
        let network = guest().await;
        let absent =
            Interface { device: "eth7".into(), name: "eth7".into(), ..interface("02:00:00:00:00:99", &[]) };
        let error = network.update_interface(&absent).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(
            error.chain().contains("02:00:00:00:00:99") && error.chain().contains("nic"),
            "{}",
            error.chain()
        );
        for wrong in [
            interface("not a mac", &[]),
            interface(MAC, &[("10.1.0", "24")]),
            interface(MAC, &[("10.1.0.5", "33")]),
            Interface { name: "a/b".into(), ..interface(MAC, &[]) },
            Interface { name: "sixteen-letters-".into(), ..interface(MAC, &[]) },
            Interface { mtu: u64::MAX, ..interface(MAC, &[]) },
        ] {
            let error = network.update_interface(&wrong).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{wrong:?}: {}", error.chain());
        }
        network.update_interface(&interface(MAC, &[("10.1.0.5", "24")])).await.unwrap();
        for wrong in [
            route("10.1.0.0/33", ""),
            route("x", ""),
            route("", "y"),
            Route { scope: 999, ..route("", "10.1.0.1") },
        ] {
            let error = network.update_routes(std::slice::from_ref(&wrong)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{wrong:?}: {}", error.chain());
        }
        let elsewhere = Route { device: "eth9".into(), ..route("", "10.1.0.1") };
        assert_eq!(network.update_routes(&[elsewhere]).await.unwrap_err().kind(), Kind::NotFound);
    });
}

#[test]
fn routes_are_set_whatever_their_order_and_may_be_set_again() {
    isolated(|| async {
        let network = guest().await;
        network.update_interface(&interface(MAC, &[("10.1.0.5", "32"), ("fd00::5", "128")])).await.unwrap();
        // A gateway outside the address's network, as ptp plugins have it, and its route last.
        let link = Route { scope: 253, ..route("169.254.1.1/32", "") };
        let wanted = [
            route("", "169.254.1.1"),
            link,
            route("fd01::/64", ""),
            Route { mtu: 1300, ..route("10.2.0.0/16", "169.254.1.1") },
        ];
        network.update_routes(&wanted).await.unwrap();
        let all = network.update_routes(&wanted).await.unwrap();
        let has = |dest: &str, gateway: &str| {
            all.iter()
                .filter(|route| route.dest == dest && route.gateway == gateway && route.device == "eth0")
                .count()
        };
        assert_eq!(
            [has("", "169.254.1.1"), has("169.254.1.1/32", ""), has("fd01::/64", "")],
            [1, 1, 1],
            "{all:?}"
        );
        let narrow = all.iter().find(|route| route.dest == "10.2.0.0/16").unwrap();
        assert_eq!((narrow.mtu, narrow.gateway.as_str()), (1300, "169.254.1.1"));
    });
}

#[test]
fn a_renewed_network_has_nothing_of_the_old_one() {
    isolated(|| async {
        let network = guest().await;
        network.update_interface(&interface(MAC, &[("10.1.0.5", "24"), ("fd00::5", "64")])).await.unwrap();
        network
            .update_routes(&[route("", "10.1.0.1"), route("10.7.0.0/16", "10.1.0.1"), route("", "fd00::1")])
            .await
            .unwrap();
        network
            .add_neighbors(&[
                neighbor("10.1.0.1", "02:00:00:00:00:aa"),
                neighbor("fd00::1", "02:00:00:00:00:aa"),
            ])
            .await
            .unwrap();
        assert!(neighbors().await.contains("02:00:00:00:00:aa"));

        let (new, routes) = (interface(OTHER_MAC, &[("10.9.0.5", "16")]), [route("", "10.9.0.1")]);
        network.renew(&[new], &routes, &[neighbor("10.9.0.1", "02:00:00:00:00:bb")]).await.unwrap();
        let got = eth0(&network).await;
        assert_eq!((addresses(&got), got.hwAddr.as_str()), (vec!["10.9.0.5/16".to_owned()], OTHER_MAC));
        let link_local = got.IPAddresses.iter().filter(|ip| ip.address.starts_with("fe80"));
        assert!(link_local.clone().all(|ip| ip.address == "fe80::ff:fe00:77"), "{:?}", got.IPAddresses);
        let left: Vec<_> = network
            .routes()
            .await
            .unwrap()
            .into_iter()
            .filter(|route| !route.dest.starts_with("fe80"))
            .collect();
        let shown: Vec<_> =
            left.iter().map(|route| format!("{} via {:?}", route.dest, route.gateway)).collect();
        assert_eq!(shown, [" via \"10.9.0.1\"", "10.9.0.0/16 via \"\""]);
        let arp = neighbors().await;
        assert!(arp.contains("02:00:00:00:00:bb") && !arp.contains("02:00:00:00:00:aa"), "{arp}");
    });
}

#[test]
fn a_renewal_ends_old_connections_but_not_those_within_the_guest() {
    isolated(|| async {
        let network = guest().await;
        network.update_interface(&interface(MAC, &[("10.1.0.5", "24")])).await.unwrap();
        let pair = async |ip: Ipv4Addr| {
            let listener = TcpListener::bind(SocketAddr::new(ip.into(), 0)).await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            (listener, stream, accepted)
        };
        let (listener, mut old, _old_peer) = pair(Ipv4Addr::new(10, 1, 0, 5)).await;
        let (_, mut local, mut local_peer) = pair(Ipv4Addr::LOCALHOST).await;
        network.renew(&[interface(MAC, &[("10.1.0.5", "24")])], &[], &[]).await.unwrap();
        let patience = Duration::from_secs(10);
        let ended = tokio::time::timeout(patience, old.read(&mut [0; 1])).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
        tokio::io::AsyncWriteExt::write_all(&mut local, b"x").await.unwrap();
        tokio::time::timeout(patience, local_peer.read_exact(&mut [0; 1])).await.unwrap().unwrap();
        // What listened goes on listening.
        let again = TcpStream::connect(listener.local_addr().unwrap());
        tokio::time::timeout(patience, again).await.unwrap().unwrap();
    });
}

#[test]
fn counters_are_the_interfaces() {
    isolated(|| async {
        let network = guest().await;
        let names: Vec<_> = network.usage().await.unwrap().into_iter().map(|stats| stats.name).collect();
        assert!(names.contains(&"nic".to_owned()) && !names.contains(&"lo".to_owned()), "{names:?}");
    });
}
