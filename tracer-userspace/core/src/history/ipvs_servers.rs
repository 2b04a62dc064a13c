//! Real servers taken out of IPVS, and entries that were found without theirs.

use std::{collections::VecDeque, net::SocketAddr};

use rsttrace_model::{flow::Flow, ipvs::IpvsEntry};

use crate::{case::Stamped, event::IpvsServerRemoved};

/// Removals are the work of administrators and controllers: a rollout of a large cluster fits.
const REMOVED: usize = 4096;

/// Entries found for connections that timed out; each is needed within a second.
const ORPHANS: usize = 1024;

/// The bounded store.
#[derive(Debug, Default)]
pub struct IpvsServers {
    removed: VecDeque<Stamped<IpvsServerRemoved>>,
    orphans: VecDeque<Stamped<IpvsEntry>>,
}

fn push<T>(list: &mut VecDeque<T>, most: usize, item: T) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(item);
}

impl IpvsServers {
    pub fn remember(&mut self, removal: Stamped<IpvsServerRemoved>) {
        push(&mut self.removed, REMOVED, removal);
    }

    pub fn remember_orphan(&mut self, orphan: Stamped<IpvsEntry>) {
        push(&mut self.orphans, ORPHANS, orphan);
    }

    /// Removals of the server of this connection (client to server, as IPVS addresses them) from its
    /// service, newest first.
    pub fn removals(
        &self,
        netns: u32,
        virtual_flow: Flow,
        real_flow: Flow,
    ) -> impl Iterator<Item = &Stamped<IpvsServerRemoved>> {
        self.removed.iter().rev().filter(move |at| {
            // A firewall mark has no address of its own.
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

    /// Entries without a server of any of these connections, newest first.
    pub fn orphans(&self, flows: &[Flow]) -> impl Iterator<Item = &Stamped<IpvsEntry>> {
        self.orphans.iter().rev().filter(|at| {
            let its = [at.value.virtual_flow.key(), at.value.real_flow().key()];
            flows.iter().any(|flow| its.contains(&flow.key()))
        })
    }
}
