//! Conntrack entries, sockets and traffic counters of namespaces.

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
    /// Empty unless they were requested.
    pub counters: Counters,
}

/// Counters since the namespace was created. Packets that are only forwarded are counted by IPVS only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// TCP connections opened and accepted by sockets (`ActiveOpens` and `PassiveOpens`).
    pub tcp_opens: Option<u64>,
    /// UDP datagrams that sockets sent, and those that arrived for a socket, delivered or not, of IPv4 and IPv6.
    pub udp_datagrams: Option<u64>,
    /// Connections that IPVS has scheduled, of all protocols; a 32-bit counter.
    pub ipvs_conns: Option<u64>,
    /// The same by service; `None` if netlink may not be used.
    pub ipvs_services: Option<BTreeMap<ServiceKey, u32>>,
    /// Ports of `ip_local_port_range`.
    pub local_ports: Option<u64>,
}

/// The key of an IPVS service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// 0 if a firewall mark selects the service, which then takes any protocol.
    pub protocol: u8,
    pub ip: IpAddr,
    pub port: u16,
    pub fwmark: u32,
}
