//! TCP packets that this host dropped, and why.

use rsttrace_model::flow::{Flow, Nanos};
use serde::{Deserialize, Serialize};

use super::{packet::Packet, stack::Stack};

/// netfilter, or IPVS on its hooks, dropped a TCP packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct PacketDrop {
    /// With the addresses that its sender used, also where NAT had already changed some of them.
    pub packet: Packet,
    pub why: DropReason,
}

/// Why a packet was dropped.
#[derive(Clone, Debug, PartialEq)]
pub enum DropReason {
    /// The conntrack table was full: dropped right after `early_drop` found nothing to evict.
    TableFull,
    /// A SYN for which its IPVS service had no usable server.
    NoServer,
    /// A mid-stream packet for an IPVS service from which a real server was removed.
    NoDestination,
    /// Its conntrack entry could not be inserted: the tuple that NAT chose, from source to destination,
    /// belongs to another entry.
    Clash { tuple: Flow },
    /// A rule answered with an ICMP error, in these functions. Has the tuples of the connection where NAT
    /// translates it.
    Rejected { stack: Stack, nat: Option<NatTuples>, entry: PacketEntry },
    /// netfilter dropped it for an unknown reason: a rule, or a full table. Recorded only where kprobes are
    /// unavailable.
    Netfilter {
        /// The packet had a conntrack entry.
        tracked: bool,
    },
}

impl PacketDrop {
    /// Whether the drop alone is a failure of its connection. A drop by a rule may be intended, and counts
    /// only by its consequence.
    pub fn is_failure(&self) -> bool {
        matches!(self.why, DropReason::TableFull | DropReason::NoServer)
    }

    /// The tuples of the connection, where a rule rejected a packet of a translated connection.
    pub fn nat(&self) -> Option<NatTuples> {
        match self.why {
            DropReason::Rejected { nat, .. } => nat,
            _ => None,
        }
    }

    /// The tuple that NAT chose and that belongs to another entry.
    pub fn clash(&self) -> Option<Flow> {
        match self.why {
            DropReason::Clash { tuple } => Some(tuple),
            _ => None,
        }
    }

    /// The conntrack entry of a packet that a rule answered with an ICMP error.
    pub fn rejected_entry(&self) -> Option<PacketEntry> {
        match self.why {
            DropReason::Rejected { entry, .. } => Some(entry),
            _ => None,
        }
    }

    /// The functions that answered it with an ICMP error.
    pub fn rejected_by(&self) -> Option<&Stack> {
        match &self.why {
            DropReason::Rejected { stack, .. } => Some(stack),
            _ => None,
        }
    }
}

/// The conntrack entry of a packet that a rule met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketEntry {
    /// Not recorded.
    #[default]
    Unknown,
    /// None: the packet is not tracked, or INVALID.
    None,
    /// The packet made it: its connection had none. A rule sees `ct state new`.
    Made,
    /// It existed before the packet.
    Existed,
}

impl PacketEntry {
    pub fn is_unknown(&self) -> bool {
        *self == Self::Unknown
    }

    /// Whether the packet's connection had no entry any more.
    pub fn was_lost(self) -> bool {
        matches!(self, Self::None | Self::Made)
    }
}

/// Packets of one direction of a connection that netfilter dropped: a rule, a policy or IPVS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDrop {
    /// As the packets were when they were dropped.
    pub flow: Flow,
    /// When the first and the newest were dropped.
    pub first: Nanos,
    pub last: Nanos,
    pub count: u32,
    /// Of the newest packet, like the entry.
    pub netns: u32,
    pub entry: PacketEntry,
}

/// Both directions of a translated connection, each as its sender addresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatTuples {
    pub original: Flow,
    pub reply: Flow,
}

impl NatTuples {
    /// The addresses that the sender used, of a packet that NAT may have changed in part (`halfway`). `None`
    /// for a packet of another connection.
    pub fn as_sent(self, halfway: Flow) -> Option<Flow> {
        let Self { original, reply } = self;
        let goes = |from: Flow, to: Flow| {
            halfway.src == from.src && (halfway.dst == from.dst || halfway.dst == to.src)
        };
        if goes(original, reply) {
            Some(original)
        } else if goes(reply, original) {
            Some(reply)
        } else {
            None
        }
    }
}

/// The form in captures since their first version.
#[derive(Serialize, Deserialize)]
struct Stored {
    packet: Packet,
    table_full: bool,
    #[serde(default)]
    no_server: bool,
    #[serde(default)]
    no_destination: bool,
    tracked: bool,
    #[serde(default)]
    clash: Option<Flow>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<Stack>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nat: Option<NatTuples>,
    #[serde(default, skip_serializing_if = "PacketEntry::is_unknown")]
    entry: PacketEntry,
}

impl From<Stored> for PacketDrop {
    fn from(stored: Stored) -> Self {
        let Stored { packet, table_full, no_server, no_destination, tracked, .. } = stored;
        let why = match (stored.clash, stored.rejected) {
            _ if table_full => DropReason::TableFull,
            _ if no_server => DropReason::NoServer,
            _ if no_destination => DropReason::NoDestination,
            (Some(tuple), _) => DropReason::Clash { tuple },
            (None, Some(stack)) => {
                DropReason::Rejected { stack, nat: stored.nat, entry: stored.entry }
            }
            (None, None) => DropReason::Netfilter { tracked },
        };
        Self { packet, why }
    }
}

impl From<PacketDrop> for Stored {
    fn from(PacketDrop { packet, why }: PacketDrop) -> Self {
        let mut stored = Self {
            packet,
            table_full: false,
            no_server: false,
            no_destination: false,
            tracked: false,
            clash: None,
            rejected: None,
            nat: None,
            entry: PacketEntry::Unknown,
        };
        match why {
            DropReason::TableFull => stored.table_full = true,
            DropReason::NoServer => stored.no_server = true,
            DropReason::NoDestination => stored.no_destination = true,
            DropReason::Clash { tuple } => {
                (stored.clash, stored.tracked) = (Some(tuple), true);
            }
            DropReason::Rejected { stack, nat, entry } => {
                (stored.rejected, stored.nat, stored.entry) = (Some(stack), nat, entry);
            }
            DropReason::Netfilter { tracked } => stored.tracked = tracked,
        }
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{data, flow};

    #[test]
    fn every_drop_reason_is_read_back_from_a_capture() {
        let nat = NatTuples {
            original: flow("10.0.0.1:1", "10.0.0.2:2"),
            reply: flow("10.0.0.3:2", "10.0.0.1:1"),
        };
        for why in [
            DropReason::TableFull,
            DropReason::NoServer,
            DropReason::NoDestination,
            DropReason::Clash { tuple: flow("10.0.0.3:2", "10.0.0.1:1") },
            DropReason::Rejected {
                stack: vec!["nf_send_unreach".into()],
                nat: Some(nat),
                entry: PacketEntry::Made,
            },
            DropReason::Netfilter { tracked: true },
            DropReason::Netfilter { tracked: false },
        ] {
            let drop = PacketDrop { packet: data("10.0.0.1:1", "10.0.0.2:2"), why };
            let text = serde_json::to_string(&drop).expect("plain data");
            assert_eq!(serde_json::from_str::<PacketDrop>(&text).expect("its own text"), drop);
        }
    }
}
