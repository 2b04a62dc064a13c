//! What namespaces hold, and counters of what they did.

use std::{collections::BTreeMap, net::IpAddr};

use crate::netns::NetnsReach;

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    pub netns: u32,
    pub reach: NetnsReach,
    /// `nf_conntrack_count`
    pub conntrack: Option<u64>,
    /// Its TCP sockets in ESTABLISHED or CLOSE_WAIT (`CurrEstab`).
    pub established: Option<u64>,
    /// Where they were asked for.
    pub counters: Counters,
}

/// Counters since the namespace was made. Packets that are only forwarded are in none of them but IPVS's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// TCP connections made and accepted by sockets (`ActiveOpens` and `PassiveOpens`).
    pub tcp_opens: Option<u64>,
    /// UDP datagrams that sockets sent and that came for one, delivered or not, of IPv4 and IPv6.
    pub udp_datagrams: Option<u64>,
    /// Connections that IPVS has scheduled, of all protocols; it counts in 32 bits.
    pub ipvs_conns: Option<u64>,
    /// The same by service, where we may ask.
    pub ipvs_services: Option<BTreeMap<ServiceKey, u32>>,
    /// Ports of `ip_local_port_range`.
    pub local_ports: Option<u64>,
}

/// Which IPVS service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// 0 where a firewall mark selects it: it takes any.
    pub protocol: u8,
    pub ip: IpAddr,
    pub port: u16,
    pub fwmark: u32,
}
