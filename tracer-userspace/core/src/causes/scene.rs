//! A host as it is, for fixes that are computed without an incident before our eyes.

use std::net::{IpAddr, SocketAddr};

use rsttrace_model::{
    host_state::{HostState, Netns},
    netns::NetnsReach,
    settings::{Scope, Setting},
};

use crate::fix::Change;

/// Namespaces for which the same fix is told; more of them have to be asked for one by one.
const MOST_PLACES: usize = 8;

/// What fixes are computed from.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub view: &'a HostState,
    /// Change nothing in any other namespace.
    pub netns: Option<u32>,
    /// The longest silence that a connection has to survive, seconds.
    pub idle_s: Option<f64>,
    pub broken: Broken,
}

/// What is known of the connection that broke: it selects, no value is taken from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Broken {
    pub client: Option<IpAddr>,
    /// The responder, as the initiator addressed it.
    pub service: Option<SocketAddr>,
    /// The same behind NAT.
    pub server: Option<IpAddr>,
    /// The namespace of the application that lost it.
    pub application: Option<u32>,
    /// Its socket had SO_KEEPALIVE on.
    pub keepalive: Option<bool>,
    /// The state of its IPVS entry (`IP_VS_TCP_S_*`).
    pub ipvs_state: Option<u32>,
}

impl<'a> Scene<'a> {
    pub fn of(view: &'a HostState) -> Self {
        Self { view, netns: None, idle_s: None, broken: Broken::default() }
    }

    /// The namespaces that something applies to, unless one was asked for.
    pub fn places(&self, applies: impl Fn(&Netns) -> bool) -> Vec<&'a Netns> {
        let asked = |netns: &&Netns| match self.netns {
            Some(inum) => netns.place.netns == inum,
            None => applies(netns),
        };
        self.view.namespaces.iter().filter(asked).take(MOST_PLACES).collect()
    }

    /// Those that balance with IPVS; the service of the connection that broke, if it is known.
    pub fn balancers(&self) -> Vec<&'a Netns> {
        let balances = |netns: &Netns| netns.services.iter().flatten().next().is_some();
        let serves = |netns: &&Netns| {
            netns.services.iter().flatten().any(|it| {
                self.broken.service.is_some_and(|at| (it.ip, it.port) == (at.ip(), at.port()))
            })
        };
        // A firewall mark or the port 0 stand for many services.
        narrowed(self.places(balances), serves)
    }

    /// Those that translate addresses; the neighbours of the connection that broke, if it is known.
    pub fn translators(&self) -> Vec<&'a Netns> {
        let Broken { client, service, server, .. } = self.broken;
        let ends = [client, server, service.map(|service| service.ip())];
        let is_near = |netns: &&Netns| {
            let addresses = || netns.addresses.iter().flatten();
            ends.into_iter().flatten().any(|end| addresses().any(|at| on_one_link(at.ip, end)))
        };
        narrowed(self.places(|netns| netns.translates == Some(true)), is_near)
    }

    /// Those that something applies to; the one that has the service's address, if it is known.
    pub fn servers(&self, applies: impl Fn(&Netns) -> bool) -> Vec<&'a Netns> {
        let service = self.broken.service.map(|service| service.ip());
        let serves = |netns: &&Netns| {
            let ends = [self.broken.server, service];
            let has = |end: &IpAddr| netns.addresses.iter().flatten().any(|at| at.ip == *end);
            ends.iter().flatten().any(has)
        };
        narrowed(self.places(applies), serves)
    }

    /// Those whose application lost a connection: asked for, or known; nothing tells which otherwise.
    pub fn victims(&self) -> Vec<&'a Netns> {
        self.places(|netns| Some(netns.place.netns) == self.broken.application)
    }

    /// The shortest limit of an idle connection that the balancers and translators have, seconds.
    pub fn shortest_limit_s(&self) -> Option<u64> {
        let balanced = self.balancers().into_iter().filter_map(|it| self.value(it, "ipvs.tcp"));
        const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
        let translated =
            self.translators().into_iter().filter_map(|it| self.value(it, ESTABLISHED));
        balanced.chain(translated).min()
    }

    /// The initial namespace, where the machine's settings are changed.
    pub fn host(&self) -> Option<&'a Netns> {
        self.view.namespaces.iter().find(|netns| netns.place.reach == NetnsReach::Initial)
    }

    /// The value of a setting, wherever it is kept.
    pub fn value(&self, netns: &Netns, key: &str) -> Option<u64> {
        match Setting::find(key)?.scope {
            Scope::Machine => self.view.machine.values.number(key),
            Scope::Netns => netns.values.number(key),
        }
    }

    /// The change of a setting in a namespace, which knows the value it finds. `None` where the setting
    /// is not there; a change from a value to itself says that it is so already.
    pub fn sysctl(&self, netns: &Netns, key: &'static str, to: u64) -> Option<Change> {
        let from = Some(self.value(netns, key)?);
        Some(Change::Sysctl { place: netns.place.clone(), key, from, to })
    }
}

/// Those that fit better, unless none does.
fn narrowed(all: Vec<&Netns>, fits: impl Fn(&&Netns) -> bool) -> Vec<&Netns> {
    let better: Vec<_> = all.iter().copied().filter(|netns| fits(netns)).collect();
    if better.is_empty() { all } else { better }
}

/// Within 24 bits of IPv4 or 64 of IPv6: the usual size of a link, or smaller than it.
fn on_one_link(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
        _ => false,
    }
}
