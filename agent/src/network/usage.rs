//! What went over each interface.

use agent_proto::agent::NetworkStats;
use rtnetlink::packet_route::link::LinkAttribute;

use super::{Network, name};
use crate::error::Result;

impl Network {
    /// Counters of all interfaces but loopback.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn usage(&self) -> Result<Vec<NetworkStats>> {
        let links = self.links().await?;
        let others = links.iter().filter(|link| name(link) != "lo");
        let stats = others.filter_map(|link| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => Some(NetworkStats {
                    name: name(link),
                    rx_bytes: stats.rx_bytes,
                    rx_packets: stats.rx_packets,
                    rx_errors: stats.rx_errors,
                    rx_dropped: stats.rx_dropped,
                    tx_bytes: stats.tx_bytes,
                    tx_packets: stats.tx_packets,
                    tx_errors: stats.tx_errors,
                    tx_dropped: stats.tx_dropped,
                    ..NetworkStats::default()
                }),
                _ => None,
            })
        });
        Ok(stats.collect())
    }
}
