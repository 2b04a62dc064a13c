//! What a host knows of one connection.

use std::net::SocketAddr;

use crate::{
    conntrack::ConntrackEntry,
    flow::{Flow, Nanos},
    ipvs::IpvsEntry,
    netns::Place,
    owner::Owner,
    socket::SocketState,
};

/// Something found in a network namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct In<T> {
    pub place: Place,
    pub it: T,
}

/// An IPVS entry, which can only be read with its whole table: every few seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balanced {
    pub entry: IpvsEntry,
    pub read: Nanos,
    /// `ipvsadm --set`, of established connections, seconds.
    pub limit_s: Option<u32>,
}

/// One end of the connection on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub socket: SocketState,
    pub owner: Option<Owner>,
}

/// One reading of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    pub at: Nanos,
    pub ends: Vec<In<End>>,
    pub ipvs: Vec<In<Balanced>>,
    pub conntrack: Vec<In<ConntrackEntry>>,
    /// Its addresses that are IPVS services, where no table has an entry of it.
    pub services: Vec<In<SocketAddr>>,
    /// An entry that was there, without which open sockets are cut off.
    pub lost: Option<String>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// Every tuple by which a reading names the connection.
pub fn tuples(sight: &Sight) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    let balanced = sight.ipvs.iter().map(|it| &it.it.entry);
    let all = balanced
        .flat_map(|entry| [entry.virtual_flow, entry.real_flow()])
        .chain(sight.conntrack.iter().flat_map(|it| [it.it.original, it.it.reply.reversed()]))
        .chain(sight.ends.iter().map(|it| it.it.socket.flow));
    for flow in all {
        if !flows.iter().any(|it| it.key() == flow.key()) {
            flows.push(flow);
        }
    }
    flows
}

const MS: Nanos = 1_000_000;
const SECOND: Nanos = 1_000_000_000;

impl Sight {
    /// Nothing of the connection is left here.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.ipvs.is_empty() && self.conntrack.is_empty()
    }

    /// Remembers what has been lost since the reading before.
    pub fn after(&mut self, before: &Self) {
        let lost_ipvs = (!before.ipvs.is_empty() && self.ipvs.is_empty()).then(|| {
            before.ipvs.first().map(|it| format!("the IPVS entry {}", it.place.describe()))
        });
        let translated = |sight: &Self| {
            let mut entries = sight.conntrack.iter();
            entries.find(|it| sight.depends_on(it)).map(|it| it.place.describe())
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
        self.ends.iter().map(|end| &end.it.socket).filter(|socket| socket.lives())
    }

    /// When a packet was last sent or received here, as far as sockets tell.
    pub fn last_packet(&self) -> Option<Nanos> {
        let age = |socket: &SocketState| {
            let ages = socket.ages?;
            Some(ages.data_sent_ms.min(ages.data_received_ms).min(ages.ack_received_ms))
        };
        let youngest = self.living().filter_map(age).min()?;
        Some(self.at.saturating_sub(u64::from(youngest) * MS))
    }

    /// Seconds that an IPVS entry has left now. `None` when a packet has passed since it was read, which has
    /// wound its timer up again.
    pub fn ipvs_left_s(&self, balanced: &Balanced) -> Option<u64> {
        // The stamp of a segment is as coarse as a jiffy.
        const COARSE: Nanos = 20 * MS;
        let passed = self.last_packet().is_some_and(|last| last > balanced.read + COARSE);
        let counted = self.at.saturating_sub(balanced.read) / SECOND;
        (!passed).then(|| u64::from(balanced.entry.left_s).saturating_sub(counted))
    }

    /// Conntrack translates it, and not only on behalf of IPVS, which would make a new entry.
    pub fn depends_on(&self, entry: &In<ConntrackEntry>) -> bool {
        let balanced = self.ipvs.iter().any(|it| it.place.netns == entry.place.netns);
        entry.it.translates() && !balanced
    }
}
