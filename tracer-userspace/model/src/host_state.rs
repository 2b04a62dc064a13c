//! The state of a host, as plain data for the rules of `check`, for `plan` and for fixes.

use std::{collections::BTreeMap, net::SocketAddr};

use super::configured::Configured;
use crate::{
    address::Address,
    configured::KubeProxy,
    conntrack::{ConntrackEntry, ConntrackStat},
    firewall::Firewall,
    ipvs::{IpvsService, IpvsTable},
    kube_proxy::{Mode, Written},
    netns::{NetnsReach, Place, TcpCounters},
    settings::{Scope, Setting, Values},
    socket::{HeldSocket, SocketList},
};

/// The state of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostState {
    pub machine: Machine,
    /// The initial namespace first.
    pub namespaces: Vec<Netns>,
    /// Sockets of [`Netns::connections`] and the processes that hold them, by inode number.
    pub held: BTreeMap<u64, HeldSocket>,
    pub configured: Configured,
    /// What could not be read, and why.
    pub not_read: Vec<NotRead>,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRead {
    /// "netns web", "the IPVS timeouts on the host"
    pub what: String,
    /// The reason, as a clause: "entering another network namespace needs CAP_SYS_ADMIN"
    pub why: String,
}

/// Facts about the whole machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// `uname -r`
    pub release: String,
    pub cpus: u32,
    /// `MemTotal`
    pub ram_bytes: Option<u64>,
    /// The settings of [`crate::settings::Scope::Machine`].
    pub values: Values,
}

/// One network namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Netns {
    pub place: Place,
    /// The settings of [`crate::settings::Scope::Netns`].
    pub values: Values,
    /// Virtual services; `None` while ip_vs is not loaded, or where they cannot be read.
    pub services: Option<Vec<IpvsService>>,
    /// Whether it has rules for NAT. `None` if that is not known.
    pub translates: Option<bool>,
    /// Rules about INVALID packets and masquerading; `None` if they could not be read.
    pub firewall: Option<Firewall>,
    /// Tables of iptables-legacy whose rules could not be read.
    pub legacy_tables: Vec<String>,
    pub listeners: Option<Vec<SocketAddr>>,
    /// The listening sockets themselves, for their accept queues.
    pub queues: Option<SocketList>,
    pub connections: Option<SocketList>,
    /// The IPVS connection table; `None` while ip_vs is not loaded.
    pub ipvs_table: Option<IpvsTable>,
    /// Entries of connection tracking that belong to a connection of a socket on this machine.
    pub tracked: Vec<ConntrackEntry>,
    /// Addresses of its interfaces.
    pub addresses: Option<Vec<Address>>,
    pub conntrack: ConntrackStat,
    pub tcp: TcpCounters,
}

impl HostState {
    /// The initial namespace, where the machine's values are changed.
    pub fn initial(&self) -> Option<&Netns> {
        self.namespaces.first().filter(|netns| netns.place.reach == NetnsReach::Initial)
    }

    /// The namespace with this inode number.
    pub fn netns(&self, inum: u32) -> Option<&Netns> {
        self.namespaces.iter().find(|netns| netns.place.netns == inum)
    }
}

impl Netns {
    pub fn number(&self, key: &str) -> Option<u64> {
        self.values.number(key)
    }

    pub fn is(&self, key: &str, value: u64) -> bool {
        self.number(key) == Some(value)
    }

    /// Whether it has an IPVS service for a protocol. A service with a firewall mark may be for any protocol.
    pub fn balances(&self, protocol: u8) -> bool {
        let services = self.services.as_deref().unwrap_or_default();
        services.iter().any(|service| service.fwmark != 0 || service.protocol == protocol)
    }
}

/// The value in the kernel.
pub fn effective(state: &HostState, netns: &Netns, setting: &Setting) -> Option<u64> {
    match setting.scope {
        Scope::Machine => state.machine.values.number(setting.key),
        Scope::Netns => netns.values.number(setting.key),
    }
}

/// What kube-proxy's next start does to a setting of a namespace that has this value then, as a clause; `None` if
/// the value stays.
pub fn at_next_start(
    state: &HostState,
    netns: &Netns,
    setting: &Setting,
    value: u64,
) -> Option<String> {
    let proxy = state.configured.kube_proxy.as_ref().filter(|_| is_initial(netns))?;
    proxy.at_next_start(setting.key, value, state.machine.cpus)
}

/// Whether kube-proxy writes a setting when it starts, or may write it.
pub fn may_be_written(state: &HostState, netns: &Netns, setting: &Setting) -> bool {
    let proxy = state.configured.kube_proxy.as_ref().filter(|_| is_initial(netns));
    proxy.is_some_and(|it| it.written(setting.key, state.machine.cpus) != Written::Nothing)
}

/// Whether kube-proxy made an IPVS service that it no longer serves: after a change from ipvs to iptables mode, its
/// services and their addresses on kube-ipvs0 stay.
pub fn is_left_behind(state: &HostState, netns: &Netns, service: &IpvsService) -> bool {
    let mode = state.configured.kube_proxy.as_ref().and_then(KubeProxy::runs_as);
    let is_its =
        |it: &Address| it.interface.as_deref() == Some("kube-ipvs0") && it.ip == service.ip;
    is_initial(netns)
        && mode.is_some_and(|mode| mode != Mode::Ipvs)
        && netns.addresses.iter().flatten().any(is_its)
}

/// The value that kube-proxy writes when it starts.
pub fn writer(state: &HostState, netns: &Netns, setting: &Setting) -> Option<u64> {
    let proxy = state.configured.kube_proxy.as_ref().filter(|_| is_initial(netns))?;
    proxy.writes(setting.key, state.machine.cpus)
}

pub fn proxy_name(state: &HostState) -> Option<String> {
    state.configured.kube_proxy.as_ref().map(KubeProxy::describe)
}

/// Files and kube-proxy set the values of the initial namespace only.
pub fn is_initial(netns: &Netns) -> bool {
    netns.place.reach == NetnsReach::Initial
}
