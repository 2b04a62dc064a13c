//! The host's current state, for fixes that are computed without a live incident.

use std::net::{IpAddr, SocketAddr};

use rsttrace_model::{
    host_state::{HostState, Netns},
    netns::NetnsReach,
    settings::{Scope, Setting},
};

use crate::fix::Change;

/// Most namespaces for which one fix is repeated; others are selected one by one with `netns`.
const MAX_PLACES: usize = 8;

/// Input from which fixes are computed.
#[derive(Clone, Copy, Debug)]
pub struct FixContext<'a> {
    pub view: &'a HostState,
    /// If set, change only this namespace.
    pub netns: Option<u32>,
    /// The longest idle time that a connection has to survive, seconds.
    pub idle_s: Option<f64>,
    pub failed: FailedConnection,
}

/// What is known of the failed connection. It selects namespaces; no value is taken from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct FailedConnection {
    pub client: Option<IpAddr>,
    /// The responder, as the initiator addressed it.
    pub service: Option<SocketAddr>,
    /// The responder's address behind NAT.
    pub server: Option<IpAddr>,
    /// The namespace of the application that lost the connection.
    pub application: Option<u32>,
    /// Its socket had SO_KEEPALIVE on.
    pub keepalive: Option<bool>,
    /// The state of its IPVS entry (`IP_VS_TCP_S_*`).
    pub ipvs_state: Option<u32>,
}

impl<'a> FixContext<'a> {
    pub fn of(view: &'a HostState) -> Self {
        Self { view, netns: None, idle_s: None, failed: FailedConnection::default() }
    }

    /// The namespaces for which `applies` is true, or only the one selected by `netns`.
    pub fn places(&self, applies: impl Fn(&Netns) -> bool) -> Vec<&'a Netns> {
        let selected = |netns: &&Netns| match self.netns {
            Some(inum) => netns.place.netns == inum,
            None => applies(netns),
        };
        self.view.namespaces.iter().filter(selected).take(MAX_PLACES).collect()
    }

    /// The namespaces with IPVS services; only those with the failed connection's service, if known.
    pub fn ipvs_namespaces(&self) -> Vec<&'a Netns> {
        let balances = |netns: &Netns| netns.services.iter().flatten().next().is_some();
        let serves = |netns: &&Netns| {
            netns.services.iter().flatten().any(|service| {
                self.failed
                    .service
                    .is_some_and(|at| (service.ip, service.port) == (at.ip(), at.port()))
            })
        };
        // A service with a firewall mark or port 0 covers many addresses or ports.
        narrowed(self.places(balances), serves)
    }

    /// The namespaces that do NAT; only those on a link with an end of the failed connection, if known.
    pub fn nat_namespaces(&self) -> Vec<&'a Netns> {
        let FailedConnection { client, service, server, .. } = self.failed;
        let ends = [client, server, service.map(|service| service.ip())];
        let is_near = |netns: &&Netns| {
            let addresses = || netns.addresses.iter().flatten();
            ends.into_iter().flatten().any(|end| addresses().any(|at| on_one_link(at.ip, end)))
        };
        narrowed(self.places(|netns| netns.translates == Some(true)), is_near)
    }

    /// The namespaces for which `applies` is true; only those with the service's address, if known.
    pub fn servers(&self, applies: impl Fn(&Netns) -> bool) -> Vec<&'a Netns> {
        let service = self.failed.service.map(|service| service.ip());
        let serves = |netns: &&Netns| {
            let ends = [self.failed.server, service];
            let has = |end: &IpAddr| netns.addresses.iter().flatten().any(|at| at.ip == *end);
            ends.iter().flatten().any(has)
        };
        narrowed(self.places(applies), serves)
    }

    /// The namespace of the application that lost the connection, selected or known; empty otherwise.
    pub fn victim_namespaces(&self) -> Vec<&'a Netns> {
        self.places(|netns| Some(netns.place.netns) == self.failed.application)
    }

    /// The shortest idle limit of an established connection in the namespaces with IPVS or NAT, seconds.
    pub fn shortest_limit_s(&self) -> Option<u64> {
        let balanced =
            self.ipvs_namespaces().into_iter().filter_map(|it| self.value(it, "ipvs.tcp"));
        const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
        let translated =
            self.nat_namespaces().into_iter().filter_map(|it| self.value(it, ESTABLISHED));
        balanced.chain(translated).min()
    }

    /// The initial namespace, where machine-wide settings are changed.
    pub fn host(&self) -> Option<&'a Netns> {
        self.view.namespaces.iter().find(|netns| netns.place.reach == NetnsReach::Initial)
    }

    /// The value of a setting, per machine or per namespace.
    pub fn value(&self, netns: &Netns, key: &str) -> Option<u64> {
        match Setting::find(key)?.scope {
            Scope::Machine => self.view.machine.values.number(key),
            Scope::Netns => netns.values.number(key),
        }
    }

    /// The change of a setting in a namespace, with its current value. `None` where the setting does not
    /// exist; equal values mean that the setting already has the wanted value.
    pub fn sysctl(&self, netns: &Netns, key: &'static str, to: u64) -> Option<Change> {
        let from = Some(self.value(netns, key)?);
        Some(Change::Sysctl { place: netns.place.clone(), key, from, to })
    }
}

/// The namespaces that fit; all of them if none does.
fn narrowed(all: Vec<&Netns>, fits: impl Fn(&&Netns) -> bool) -> Vec<&Netns> {
    let fitting: Vec<_> = all.iter().copied().filter(|netns| fits(netns)).collect();
    if fitting.is_empty() { all } else { fitting }
}

/// Whether two addresses share a /24 (IPv4) or a /64 (IPv6), the usual prefix of a link or a part of it.
fn on_one_link(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
        _ => false,
    }
}
