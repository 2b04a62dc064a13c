//! What exists: connections, IPVS entries and what was found about a stray packet. Bounded by count;
//! of what does not fit, the verdicts say less.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use rsttrace_model::{
    flow::Flow,
    lookup::{AcceptQueue, InitialState, StateLookup},
};

use crate::event::IpvsEnd;

/// IPVS entries kept from the start, of all namespaces (a few hundred bytes each).
const ENTRIES: usize = 32_768;
/// Connections kept from the start, of all namespaces.
const CONNECTIONS: usize = 32_768;
/// Inquiries kept: many more than cases settle at once, as no more than ten a second are made.
const INQUIRIES: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Baseline {
    /// The real server of each entry, by namespace and virtual flow.
    entries: HashMap<(u32, Flow), SocketAddr>,
    /// Local addresses of connections by their remote one.
    peers: HashMap<SocketAddr, Vec<SocketAddr>>,
    connections: usize,
    inquiries: VecDeque<(u32, StateLookup)>,
    queues: VecDeque<(u32, AcceptQueue)>,
}

impl Baseline {
    /// Takes in what namespace `netns` held at the start.
    pub fn set_initial_state(&mut self, netns: u32, stock: InitialState) {
        if let Some(table) = stock.ipvs {
            let room = ENTRIES.saturating_sub(self.entries.len());
            for entry in table.entries.into_iter().take(room) {
                self.entries.insert((netns, entry.virtual_flow), entry.server);
            }
        }
        for socket in stock.sockets.into_iter().flat_map(|list| list.sockets) {
            if self.connections < CONNECTIONS {
                self.connections += 1;
                self.peers.entry(socket.flow.dst).or_default().push(socket.flow.src);
            }
        }
    }

    /// An entry has ended: its addresses may be used for another connection from now on.
    pub fn forget(&mut self, netns: u32, end: &IpvsEnd) {
        self.entries.remove(&(netns, end.virtual_flow));
    }

    pub fn add_lookup(&mut self, netns: u32, inquiry: StateLookup) {
        if self.inquiries.len() >= INQUIRIES {
            self.inquiries.pop_front();
        }
        self.inquiries.push_back((netns, inquiry));
    }

    pub fn add_queue(&mut self, netns: u32, queue: AcceptQueue) {
        if self.queues.len() >= INQUIRIES {
            self.queues.pop_front();
        }
        self.queues.push_back((netns, queue));
    }

    /// The newest reading of the accept queue of an address, and its namespace.
    pub fn queue(&self, address: SocketAddr) -> Option<&(u32, AcceptQueue)> {
        self.queues.iter().rev().find(|(_, queue)| queue.address == address)
    }

    /// The real server of an entry that existed at the start and whose end was not seen.
    pub fn server(&self, netns: u32, virtual_flow: Flow) -> Option<SocketAddr> {
        self.entries.get(&(netns, virtual_flow)).copied()
    }

    /// Who had a connection with this address at the start.
    pub fn peers_of(&self, remote: SocketAddr) -> &[SocketAddr] {
        self.peers.get(&remote).map_or(&[], Vec::as_slice)
    }

    /// The newest inquiry about a packet in a namespace.
    pub fn inquiry(&self, netns: u32, packet: Flow) -> Option<&StateLookup> {
        let about = |(asked, inquiry): &&(u32, StateLookup)| {
            *asked == netns && inquiry.packet == Some(packet)
        };
        self.inquiries.iter().rev().find(about).map(|(_, inquiry)| inquiry)
    }
}
