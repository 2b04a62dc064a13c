//! Network namespaces: how to enter one, and its settings.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{conntrack::ConntrackState, escape::is_plain, ipvs::IpvsState};

/// How an operator or a printed command enters a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetnsReach {
    /// The namespace of pid 1: a root shell is already in it.
    Initial,
    /// A name such as `/run/netns/blue`: `ip netns exec blue`.
    Named(String),
    /// A name of Docker, such as `/run/docker/netns/1f2e…`: `nsenter --net=PATH`.
    Docker(String),
    /// No name; the lowest pid in the namespace: `nsenter --net --target PID`.
    Process(u32),
    /// The namespace has neither a name nor a process, or no longer has one.
    #[default]
    Unknown,
}

/// A network namespace, and how an operator enters it.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// `net.ns.inum`
    pub netns: u32,
    pub reach: NetnsReach,
}

impl Place {
    /// Shell words to put before a command; `None` when it is unknown how to enter the namespace, or when the
    /// name has characters that are unsafe in a command.
    pub fn prefix(&self) -> Option<String> {
        match &self.reach {
            NetnsReach::Initial => Some(String::new()),
            NetnsReach::Named(path) => {
                let name = path.rsplit('/').next().filter(|name| is_plain(name))?;
                Some(format!("ip netns exec {name} "))
            }
            NetnsReach::Docker(path) => is_plain(path).then(|| format!("nsenter --net={path} ")),
            NetnsReach::Process(pid) => Some(format!("nsenter --net=/proc/{pid}/ns/net ")),
            NetnsReach::Unknown => None,
        }
    }

    /// Whether `name` means this namespace: its number, its path, or the last part of the path.
    pub fn is_called(&self, name: &str) -> bool {
        let by_path = match &self.reach {
            NetnsReach::Named(path) | NetnsReach::Docker(path) => {
                path == name || path.rsplit('/').next() == Some(name)
            }
            _ => false,
        };
        by_path || name.parse() == Ok(self.netns)
    }

    /// A place for a sentence: "on the host", "in netns web".
    pub fn describe(&self) -> String {
        let preposition = if self.reach == NetnsReach::Initial { "on" } else { "in" };
        format!("{preposition} {}", self.name())
    }

    /// A noun for a sentence: "the host", "netns web".
    pub fn name(&self) -> String {
        match &self.reach {
            NetnsReach::Initial => "the host".into(),
            NetnsReach::Named(path) | NetnsReach::Docker(path) => {
                format!("netns {}", path.rsplit('/').next().unwrap_or(path))
            }
            NetnsReach::Process(pid) => format!("the netns of pid {pid}"),
            NetnsReach::Unknown => format!("netns {}", self.netns),
        }
    }
}

/// One network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetnsState {
    /// Inode number, as `readlink /proc/PID/ns/net` shows it.
    pub inum: u32,
    pub reach: NetnsReach,
    /// `None` while nf_conntrack is not loaded.
    pub conntrack: Option<ConntrackState>,
    /// `None` while ip_vs is not loaded.
    pub ipvs: Option<IpvsState>,
    pub tcp: TcpSysctls,
    pub counters: TcpCounters,
    /// Addresses on which TCP sockets listen; a socket for both address families is listed twice. `None`
    /// where the kernel does not list its sockets.
    pub listeners: Option<Vec<SocketAddr>>,
    /// It has rules for NAT. `None` where unknown.
    pub translates: Option<bool>,
    /// Address families of its NAT chains and tables. `None` where unknown.
    pub nat_families: Option<NatFamilies>,
}

/// Address families that have a NAT chain or table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NatFamilies {
    pub v4: bool,
    pub v6: bool,
}

impl NetnsState {
    /// Whether a socket listens for connections to `address`. `None` where unknown.
    pub fn listens(&self, address: SocketAddr) -> Option<bool> {
        let takes = |on: &SocketAddr| {
            on.port() == address.port()
                && on.is_ipv4() == address.is_ipv4()
                && (on.ip() == address.ip() || on.ip().is_unspecified())
        };
        Some(self.listeners.as_ref()?.iter().any(takes))
    }

    /// Adds the listeners of an earlier reading, because the event that broke a connection may have closed its
    /// listener as well.
    pub fn remember_listeners(&mut self, earlier: &Self) {
        let (Some(now), Some(then)) = (&mut self.listeners, &earlier.listeners) else {
            return;
        };
        for address in then {
            if now.len() < MOST_LISTENERS && !now.contains(address) {
                now.push(*address);
            }
        }
    }
}

/// Listening addresses that are kept of one namespace.
pub const MOST_LISTENERS: usize = 1024;

/// TCP settings of a namespace: `/proc/sys/net/ipv4/tcp_*` (IPv6 uses them too).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpSysctls {
    pub keepalive_time_s: Option<u32>,
    pub keepalive_intvl_s: Option<u32>,
    pub keepalive_probes: Option<u32>,
    /// Retransmissions of data before the connection fails.
    pub retries2: Option<u32>,
    pub syn_retries: Option<u32>,
    pub synack_retries: Option<u32>,
    /// Retries of a connection that no process holds any more; 0 means 8.
    pub orphan_retries: Option<u32>,
    pub fin_timeout_s: Option<u32>,
    /// Whether a connection for a full accept queue gets a reset instead of no answer.
    pub abort_on_overflow: Option<bool>,
    /// 0 off, 1 when the SYN queue is full, 2 always.
    pub syncookies: Option<u32>,
    pub max_syn_backlog: Option<u32>,
    /// 0 off, 1 on, 2 loopback only.
    pub tw_reuse: Option<u32>,
    /// One value for the whole machine, shown in the initial namespace only.
    pub max_orphans: Option<u32>,
    /// `net.core.somaxconn`: the cap on every accept queue.
    pub somaxconn: Option<u32>,
    /// `net.ipv4.ip_local_port_range`, both ends included.
    pub local_port_range: Option<(u16, u16)>,
}

/// Part of `TcpExt` in `/proc/net/netstat`: events since the namespace was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpCounters {
    pub listen_overflows: Option<u64>,
    pub listen_drops: Option<u64>,
    pub abort_on_close: Option<u64>,
    pub abort_on_data: Option<u64>,
    pub abort_on_linger: Option<u64>,
    pub abort_on_memory: Option<u64>,
    pub abort_on_timeout: Option<u64>,
    pub syncookies_failed: Option<u64>,
    pub embryonic_rsts: Option<u64>,
}
