//! Real servers removed from IPVS, and IPVS entries whose real server was removed.

use std::{collections::VecDeque, net::SocketAddr};

use rsttrace_model::{flow::Flow, ipvs::IpvsEntry};

use super::push_bounded;
use crate::{case::Stamped, event::IpvsServerRemoved};

/// Removals kept. Administrators and controllers remove servers: a rollout of a large cluster fits.
const MAX_REMOVALS: usize = 4096;

/// Entries kept that were found for connections that timed out; each is needed within a second.
const MAX_ORPHANS: usize = 1024;

/// The store, limited by count.
#[derive(Debug, Default)]
pub struct IpvsServers {
    removed: VecDeque<Stamped<IpvsServerRemoved>>,
    orphans: VecDeque<Stamped<IpvsEntry>>,
}

impl IpvsServers {
    pub fn remember(&mut self, removal: Stamped<IpvsServerRemoved>) {
        push_bounded(&mut self.removed, MAX_REMOVALS, removal);
    }

    pub fn remember_orphan(&mut self, orphan: Stamped<IpvsEntry>) {
        push_bounded(&mut self.orphans, MAX_ORPHANS, orphan);
    }

    /// Removals of the server of this connection from its service, newest first. Both flows go from the client
    /// to the service or server, as IPVS addresses them.
    pub fn removals(
        &self,
        netns: u32,
        virtual_flow: Flow,
        real_flow: Flow,
    ) -> impl Iterator<Item = &Stamped<IpvsServerRemoved>> {
        self.removed.iter().rev().filter(move |at| {
            // A service with a firewall mark has no address.
            let service = at.value.service;
            let of_service = service == virtual_flow.dst || service.ip().is_unspecified();
            at.netns == netns && of_service && at.value.server == real_flow.dst
        })
    }

    /// Removals of any server from a service, newest first.
    pub fn removals_of(
        &self,
        netns: u32,
        service: SocketAddr,
    ) -> impl Iterator<Item = &Stamped<IpvsServerRemoved>> {
        self.removed.iter().rev().filter(move |at| at.netns == netns && at.value.service == service)
    }

    /// Entries of any of these connections whose real server was removed, newest first.
    pub fn orphans(&self, flows: &[Flow]) -> impl Iterator<Item = &Stamped<IpvsEntry>> {
        self.orphans.iter().rev().filter(|at| {
            let its = [at.value.virtual_flow.key(), at.value.real_flow().key()];
            flows.iter().any(|flow| its.contains(&flow.key()))
        })
    }
}
