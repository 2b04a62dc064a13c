//! State that exists, in contrast to events: connections that are older than the tracer have no record of
//! their start.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::flow::{Flow, Nanos};
use crate::{
    conntrack::ConntrackEntry,
    ipvs::IpvsTable,
    socket::{SocketList, SocketState},
};

/// The state of a namespace when tracing began.
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

/// The state when a TCP stack received a packet for which it has no connection. The event's namespace is that
/// of the stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateLookup {
    /// The packet that was answered with a reset.
    pub packet: Option<Flow>,
    pub read: Nanos,
    /// Connections from the address that the packet was sent to, with any peer; `None` where unknown.
    pub sockets: Option<Vec<SocketState>>,
    /// The entries of both addresses of the packet, in every namespace with IPVS services.
    pub ipvs: Vec<IpvsFound>,
    /// The entries of the packet and of `sockets`, in the namespaces with conntrack.
    pub conntrack: Vec<ConntrackFound>,
}

/// The conntrack entries that one namespace has of these tuples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConntrackFound {
    pub netns: u32,
    pub entries: Vec<ConntrackEntry>,
}

/// The accept queue of the listener that a connection was meant for. The event's namespace is that of the
/// listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptQueue {
    /// The address that the connection was made to.
    pub address: SocketAddr,
    pub waiting: u32,
    /// The queue is full when more connections than this wait.
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
