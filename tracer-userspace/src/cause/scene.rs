//! A host as it is, for fixes that are computed without an incident before our eyes.

use std::net::SocketAddr;

use crate::{
    audit::view::{Netns, View},
    fix::Change,
    host::NetnsReach,
    settings::{Scope, Setting},
};

/// Namespaces for which the same fix is told; more of them have to be asked for one by one.
const MOST_PLACES: usize = 8;

/// What fixes are computed from.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub view: &'a View,
    /// Change nothing in any other namespace.
    pub netns: Option<u32>,
    /// The longest silence that a connection has to survive, seconds.
    pub idle_s: Option<f64>,
    /// The responder, as the initiator addressed it.
    pub service: Option<SocketAddr>,
    /// The namespace of the application whose connection broke.
    pub application: Option<u32>,
}

impl<'a> Scene<'a> {
    pub fn of(view: &'a View) -> Self {
        Self { view, netns: None, idle_s: None, service: None, application: None }
    }

    /// The namespaces that something applies to, among those asked for.
    pub fn places(&self, applies: impl Fn(&Netns) -> bool) -> Vec<&'a Netns> {
        let asked = |netns: &&Netns| match self.netns {
            Some(inum) => netns.place.netns == inum,
            None => applies(netns),
        };
        self.view.namespaces.iter().filter(asked).take(MOST_PLACES).collect()
    }

    /// Those that balance with IPVS; the connection's service, if it is known.
    pub fn balancers(&self) -> Vec<&'a Netns> {
        let serves =
            |netns: &Netns| {
                netns.services.iter().flatten().any(|it| {
                    self.service.is_none_or(|at| (it.ip, it.port) == (at.ip(), at.port()))
                })
            };
        let found = self.places(serves);
        match found.is_empty() && self.service.is_some() {
            // A mark or a port of 0 stands for many services.
            true => Self { service: None, ..*self }.balancers(),
            false => found,
        }
    }

    /// Those that translate addresses.
    pub fn translators(&self) -> Vec<&'a Netns> {
        self.places(|netns| netns.translates == Some(true))
    }

    /// Those whose application lost a connection: asked for, or known; nothing tells which otherwise.
    pub fn victims(&self) -> Vec<&'a Netns> {
        self.places(|netns| Some(netns.place.netns) == self.application)
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
