//! The sockets, IPVS entries and conntrack entries that a host has of one connection.

use std::net::SocketAddr;

use crate::{
    conntrack::ConntrackEntry,
    flow::{Flow, Nanos},
    ipvs::IpvsEntry,
    netns::Place,
    owner::Owner,
    socket::SocketState,
};

/// A value that was read in a network namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct InNetns<T> {
    pub place: Place,
    pub value: T,
}

/// An IPVS entry. The kernel gives only the whole table, so it is read every few seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsReading {
    pub entry: IpvsEntry,
    /// When the table was read.
    pub read: Nanos,
    /// IPVS timeout of established TCP connections (`ipvsadm --set`), seconds.
    pub limit_s: Option<u32>,
}

/// One end of the connection on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub socket: SocketState,
    pub owner: Option<Owner>,
}

/// One reading of all sockets and entries of the connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub at: Nanos,
    pub ends: Vec<InNetns<End>>,
    pub ipvs: Vec<InNetns<IpvsReading>>,
    pub conntrack: Vec<InNetns<ConntrackEntry>>,
    /// Addresses of the connection that are IPVS services, where no table has an entry of the connection.
    pub services: Vec<InNetns<SocketAddr>>,
    /// An entry that existed before, and without which the open sockets cannot reach each other.
    pub lost: Option<String>,
    /// What could not be read, and why.
    pub unseen: Vec<String>,
}

/// Every tuple of the connection in a snapshot.
pub fn tuples(snapshot: &Snapshot) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    let ipvs = snapshot.ipvs.iter().map(|it| &it.value.entry);
    let all = ipvs
        .flat_map(|entry| [entry.virtual_flow, entry.real_flow()])
        .chain(
            snapshot.conntrack.iter().flat_map(|it| [it.value.original, it.value.reply.reversed()]),
        )
        .chain(snapshot.ends.iter().map(|it| it.value.socket.flow));
    for flow in all {
        if !flows.iter().any(|it| it.key() == flow.key()) {
            flows.push(flow);
        }
    }
    flows
}

const MS: Nanos = 1_000_000;
const SECOND: Nanos = 1_000_000_000;

impl Snapshot {
    /// Whether this host has no socket and no entry of the connection.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.ipvs.is_empty() && self.conntrack.is_empty()
    }

    /// Sets `lost` from the snapshot before this one.
    pub fn after(&mut self, before: &Self) {
        let lost_ipvs = (!before.ipvs.is_empty() && self.ipvs.is_empty()).then(|| {
            before.ipvs.first().map(|it| format!("the IPVS entry {}", it.place.describe()))
        });
        let translated = |snapshot: &Self| {
            let mut entries = snapshot.conntrack.iter();
            entries.find(|it| snapshot.depends_on(it)).map(|it| it.place.describe())
        };
        let lost_nat = match (translated(before), translated(self)) {
            (Some(place), None) => Some(format!("the conntrack entry {place}")),
            _ => None,
        };
        let back = (!self.ipvs.is_empty()) || translated(self).is_some();
        let carried = before.lost.clone().filter(|_| !back);
        self.lost = lost_ipvs.flatten().or(lost_nat).or(carried);
    }

    pub fn living(&self) -> impl Iterator<Item = &SocketState> {
        self.ends.iter().map(|end| &end.value.socket).filter(|socket| socket.lives())
    }

    /// When a packet was last sent or received on this host, as far as the sockets show.
    pub fn last_packet(&self) -> Option<Nanos> {
        let age = |socket: &SocketState| {
            let ages = socket.ages?;
            Some(ages.data_sent_ms.min(ages.data_received_ms).min(ages.ack_received_ms))
        };
        let youngest = self.living().filter_map(age).min()?;
        Some(self.at.saturating_sub(u64::from(youngest) * MS))
    }

    /// Seconds until an IPVS entry expires. `None` when a packet has passed since the entry was read, because
    /// the packet has refreshed the entry's timer.
    pub fn ipvs_left_s(&self, reading: &IpvsReading) -> Option<u64> {
        // The timestamp of a segment has the resolution of a jiffy.
        const COARSE: Nanos = 20 * MS;
        let passed = self.last_packet().is_some_and(|last| last > reading.read + COARSE);
        let counted = self.at.saturating_sub(reading.read) / SECOND;
        (!passed).then(|| u64::from(reading.entry.left_s).saturating_sub(counted))
    }

    /// Whether the connection needs this conntrack entry for its translation. It does not where IPVS has an
    /// entry in the same namespace, because IPVS would create a new conntrack entry.
    pub fn depends_on(&self, entry: &InNetns<ConntrackEntry>) -> bool {
        let has_ipvs = self.ipvs.iter().any(|it| it.place.netns == entry.place.netns);
        entry.value.translates() && !has_ipvs
    }
}
