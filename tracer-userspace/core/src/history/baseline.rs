//! State that was read from the host: connections, IPVS entries, limits, and the answers to lookups for packets
//! without a connection; and NAT chains that were removed, which only matter together with such a lookup. Each store is limited by count. What does not fit is missing from the verdicts.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use rsttrace_model::{
    firewall::{FilterRules, RejectingRules},
    flow::Flow,
    lookup::{AcceptQueue, InitialState, StateLookup},
    netns::NetnsState,
};

use super::push_bounded;
use crate::{
    case::Stamped,
    event::{EndedSocket, EndedSockets, FilteredFlow, IpvsEnd, NatChainRemoved, PeerSocket},
};

/// IPVS entries kept from the start of tracing, of all namespaces (a few hundred bytes each).
const MAX_ENTRIES: usize = 32_768;
/// Connections kept from the start of tracing, of all namespaces.
const MAX_CONNECTIONS: usize = 32_768;
/// Lookups kept: many more than cases settle at once, because at most ten lookups a second are made.
const MAX_LOOKUPS: usize = 256;

/// State that was read from the host.
#[derive(Debug, Default)]
pub struct Baseline {
    /// The real server of each entry, by namespace and virtual flow.
    entries: HashMap<(u32, Flow), SocketAddr>,
    /// Local addresses of connections by their remote address.
    peers: HashMap<SocketAddr, Vec<SocketAddr>>,
    connections: usize,
    lookups: VecDeque<(u32, StateLookup)>,
    queues: VecDeque<(u32, AcceptQueue)>,
    ended: VecDeque<(u32, EndedSockets)>,
    living: VecDeque<(u32, PeerSocket)>,
    /// NAT chains that were removed, oldest first.
    nat_removed: VecDeque<Stamped<NatChainRemoved>>,
    filtered: VecDeque<FilteredFlow>,
    filter_rules: VecDeque<(u32, FilterRules)>,
    rejecting_rules: VecDeque<(u32, RejectingRules)>,
    /// The highest nf_conntrack_max that was read while tracing; one value for the whole machine.
    highest_max: Option<u32>,
}

impl Baseline {
    /// Adds the state of namespace `netns` when tracing began.
    pub fn set_initial_state(&mut self, netns: u32, state: InitialState) {
        if let Some(table) = state.ipvs {
            let room = MAX_ENTRIES.saturating_sub(self.entries.len());
            for entry in table.entries.into_iter().take(room) {
                self.entries.insert((netns, entry.virtual_flow), entry.server);
            }
        }
        for socket in state.sockets.into_iter().flat_map(|list| list.sockets) {
            if self.connections < MAX_CONNECTIONS {
                self.connections += 1;
                self.peers.entry(socket.flow.dst).or_default().push(socket.flow.src);
            }
        }
    }

    /// Removes an entry that has ended: its addresses may belong to another connection from now on.
    pub fn forget(&mut self, netns: u32, end: &IpvsEnd) {
        self.entries.remove(&(netns, end.virtual_flow));
    }

    pub fn add_lookup(&mut self, netns: u32, lookup: StateLookup) {
        push_bounded(&mut self.lookups, MAX_LOOKUPS, (netns, lookup));
    }

    pub fn add_ended(&mut self, netns: u32, ended: EndedSockets) {
        push_bounded(&mut self.ended, MAX_LOOKUPS, (netns, ended));
    }

    pub fn add_nat_removal(&mut self, removal: Stamped<NatChainRemoved>) {
        push_bounded(&mut self.nat_removed, MAX_LOOKUPS, removal);
    }

    /// Removed NAT chains, newest first.
    pub fn nat_removals(&self) -> impl Iterator<Item = &Stamped<NatChainRemoved>> {
        self.nat_removed.iter().rev()
    }

    pub fn add_filtered(&mut self, flow: FilteredFlow) {
        push_bounded(&mut self.filtered, MAX_LOOKUPS, flow);
    }

    /// What the kernel kept of connections that a rule may have stopped, newest first.
    pub fn filtered(&self) -> impl Iterator<Item = &FilteredFlow> {
        self.filtered.iter().rev()
    }

    pub fn add_filter_rules(&mut self, netns: u32, rules: FilterRules) {
        push_bounded(&mut self.filter_rules, MAX_LOOKUPS, (netns, rules));
    }

    /// The newest reading of a namespace's filter rules.
    pub fn filter_rules(&self, netns: u32) -> Option<FilterRules> {
        let mut newest = self.filter_rules.iter().rev();
        newest.find(|(inum, _)| *inum == netns).map(|(_, rules)| *rules)
    }

    pub fn add_rejecting_rules(&mut self, netns: u32, rules: RejectingRules) {
        push_bounded(&mut self.rejecting_rules, MAX_LOOKUPS, (netns, rules));
    }

    /// The newest reading of the rules of a namespace that can reject a packet to an address.
    pub fn rejecting_rules(&self, netns: u32, dst: SocketAddr) -> Option<&RejectingRules> {
        let mut newest = self.rejecting_rules.iter().rev();
        newest.find(|(inum, it)| *inum == netns && it.dst == dst).map(|(_, rules)| rules)
    }

    /// Notes the limits of a reading.
    pub fn note_limits(&mut self, state: &NetnsState) {
        let max = state.conntrack.as_ref().and_then(|table| table.max);
        self.highest_max = self.highest_max.max(max);
    }

    /// The value from which nf_conntrack_max was lowered to `now` while tracing.
    pub fn max_before(&self, now: u32) -> Option<u32> {
        // Before 7.2, 0 means unlimited.
        self.highest_max.filter(|before| now != 0 && *before > now)
    }

    pub fn add_peer(&mut self, netns: u32, peer: PeerSocket) {
        push_bounded(&mut self.living, MAX_LOOKUPS, (netns, peer));
    }

    /// The newest reading of the socket with this flow, local side first, and its namespace.
    pub fn peer(&self, flow: Flow) -> Option<&(u32, PeerSocket)> {
        self.living.iter().rev().find(|(_, peer)| peer.socket.flow == flow)
    }

    /// The sockets that ended at the address of a packet, as far as they are recorded.
    pub fn ended(&self, netns: u32, packet: Flow) -> &[EndedSocket] {
        let mut newest = self.ended.iter().rev();
        let found = newest.find(|(inum, it)| *inum == netns && it.packet == packet);
        found.map_or(&[], |(_, it)| it.ended.as_slice())
    }

    pub fn add_queue(&mut self, netns: u32, queue: AcceptQueue) {
        push_bounded(&mut self.queues, MAX_LOOKUPS, (netns, queue));
    }

    /// The newest reading of the accept queue of an address, and its namespace.
    pub fn queue(&self, address: SocketAddr) -> Option<&(u32, AcceptQueue)> {
        self.queues.iter().rev().find(|(_, queue)| queue.address == address)
    }

    /// The real server of an entry that existed when tracing began and whose end is not on record.
    pub fn server(&self, netns: u32, virtual_flow: Flow) -> Option<SocketAddr> {
        self.entries.get(&(netns, virtual_flow)).copied()
    }

    /// The local addresses that had a connection with this address when tracing began.
    pub fn peers_of(&self, remote: SocketAddr) -> &[SocketAddr] {
        self.peers.get(&remote).map_or(&[], Vec::as_slice)
    }

    /// The newest lookup for a packet in a namespace.
    pub fn lookup(&self, netns: u32, packet: Flow) -> Option<&StateLookup> {
        let is_for_packet =
            |(inum, lookup): &&(u32, StateLookup)| *inum == netns && lookup.packet == Some(packet);
        self.lookups.iter().rev().find(is_for_packet).map(|(_, lookup)| lookup)
    }
}
