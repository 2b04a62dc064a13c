//! What exists, as opposed to what happens: connections that are older than the tracer left no record
//! of how they came to be.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::flow::{Flow, Nanos};
use crate::{
    conntrack::ConntrackEntry,
    ipvs::IpvsTable,
    socket::{SocketList, SocketState},
};

/// What a namespace held when tracing began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitialState {
    /// When the reading began.
    pub read: Nanos,
    /// Connections; `None` where the kernel does not list its sockets.
    pub sockets: Option<SocketList>,
    /// `None` while ip_vs was not loaded.
    pub ipvs: Option<IpvsTable>,
}

impl InitialState {
    pub fn is_empty(&self) -> bool {
        self.sockets.as_ref().is_none_or(|list| list.sockets.is_empty())
            && self.ipvs.as_ref().is_none_or(|table| table.entries.is_empty())
    }
}

/// What was there when a packet met a stack that had no connection for it. The event's namespace is
/// that of the stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateLookup {
    /// The packet that was answered with a reset.
    pub packet: Option<Flow>,
    pub read: Nanos,
    /// Connections from the address that the packet was sent to, whoever their peer is; `None` where
    /// nobody can tell.
    pub sockets: Option<Vec<SocketState>>,
    /// The entries of both of the packet's addresses, in every namespace that balances.
    pub ipvs: Vec<IpvsFound>,
    /// The entries of the packet and of `sockets`, in the namespaces that track connections.
    pub conntrack: Vec<ConntrackFound>,
}

/// The conntrack entries that one namespace has of the tuples in question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackFound {
    pub netns: u32,
    pub entries: Vec<ConntrackEntry>,
}

/// The accept queue of the listener that a connection was meant for. The event's namespace is that of the
/// listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptQueue {
    /// What the connection was addressed to.
    pub address: SocketAddr,
    pub waiting: u32,
    /// The queue is full when more than this wait.
    pub allowed: u32,
    pub read: Nanos,
}

impl AcceptQueue {
    pub fn is_full(&self) -> bool {
        self.waiting > self.allowed
    }
}

/// The entries of an address in the table of one namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpvsFound {
    pub netns: u32,
    /// When the table was read.
    pub read: Nanos,
    pub table: IpvsTable,
}
