//! Events: the input of the correlator.
//!
//! An event is a decoded kernel record, or a piece of host state that the live loop read when a
//! record arrived. Verdicts depend on this stream only, so a recorded stream replays to the same
//! verdicts.

use std::{collections::BTreeMap, net::SocketAddr};

use rsttrace_model::{
    firewall::{FilterRules, RejectingRules},
    flow::Nanos,
    ipvs::IpvsEntry,
    lookup::{AcceptQueue, InitialState, StateLookup},
    netns::NetnsState,
    owner::Owner,
};
use serde::{Deserialize, Serialize};

mod drop;
mod entry;
mod packet;
mod reset;
mod session;
mod socket;
mod stack;

pub use drop::{DropReason, NatTuples, PacketDrop, PacketEntry, RuleDrop};
pub use entry::{
    ConntrackEnd, ConntrackInvalid, FilteredFlow, IpvsEnd, IpvsRemoval, IpvsServerRemoved,
    NatChainRemoved, PlainEnd,
};
pub use packet::Packet;
pub use reset::{ResetReceived, ResetSent, SocketError, Via};
pub use session::{Session, SignalCoverage};
pub use socket::{EndedSocket, EndedSockets, PeerSocket, Socket, SocketEnd, Task};
pub use stack::{Stack, has};

/// Runs of our BPF programs that the kernel skipped since the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SkippedRuns {
    /// Of each hook.
    ByHook(BTreeMap<String, u64>),
    /// Of all hooks, as captures have it that were written before schema 1.1.
    Total(u64),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    Session(Box<Session>),
    ResetSent(Box<ResetSent>),
    ResetReceived(Box<ResetReceived>),
    SocketError(Box<SocketError>),
    IpvsEnd(Box<IpvsEnd>),
    IpvsServerRemoved(Box<IpvsServerRemoved>),
    /// The IPVS entry of a connection that timed out, where the real server is no longer part of the service.
    /// The event has the time of the timeout and the namespace of the entry.
    IpvsOrphan(Box<IpvsEntry>),
    ConntrackEnd(Box<ConntrackEnd>),
    NatChainRemoved(Box<NatChainRemoved>),
    #[serde(rename = "netfilter_drop")]
    PacketDrop(Box<PacketDrop>),
    ConntrackInvalid(Box<ConntrackInvalid>),
    /// State of a namespace, read because of a record.
    Netns(Box<NetnsState>),
    /// The owner of the socket with this inode.
    Owner {
        inode: u64,
        owner: Box<Owner>,
    },
    /// The process that has the pid of a record.
    Process {
        /// When it started.
        started: Nanos,
        owner: Box<Owner>,
    },
    /// A connection to (or of) this service still worked after it had been idle for at least `idle_s` seconds.
    Survived {
        service: SocketAddr,
        idle_s: f64,
    },
    /// The state of a namespace when tracing began.
    #[serde(rename = "stock")]
    InitialState(Box<InitialState>),
    /// The state of the host when a TCP stack received a packet for which it has no connection.
    #[serde(rename = "inquiry")]
    StateLookup(Box<StateLookup>),
    /// The sockets that ended at the address of a packet for which a TCP stack has no connection.
    EndedSockets(Box<EndedSockets>),
    /// The socket of this host that was the peer of a socket when that received a reset.
    PeerSocket(Box<PeerSocket>),
    /// What the kernel keeps of a connection whose packet a rule answered, or which timed out.
    FilteredFlow(Box<FilteredFlow>),
    /// The filter rules of a namespace in which a rule answered or dropped a packet.
    FilterRules(Box<FilterRules>),
    /// The rules of a namespace that can reject a packet to the address of a rejected SYN.
    RejectingRules(Box<RejectingRules>),
    /// The accept queue of a listener that did not answer.
    AcceptQueue(Box<AcceptQueue>),
    /// Records lost since the start, all kinds.
    Lost(u64),
    /// Runs of our BPF programs that the kernel skipped since the start: each run might have made a record.
    #[serde(rename = "left_out")]
    SkippedRuns(SkippedRuns),
    /// All events up to this event's time have arrived, so the cases that have settled by then get a verdict.
    Tick,
    /// A record kind that this build does not know, from a newer writer.
    Unknown {
        kind: u16,
        len: u32,
    },
}

/// Something that happened at a time, in a namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub ts: Nanos,
    /// `net.ns.inum`; 0 when unknown.
    pub netns: u32,
    pub body: Body,
}
