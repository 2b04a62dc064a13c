//! TCP packets that this host dropped, and why.

use rsttrace_model::flow::Flow;
use serde::{Deserialize, Serialize};

use super::{packet::Packet, stack::Stack};

/// netfilter, or IPVS on its hooks, dropped a TCP packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct PacketDrop {
    /// As its sender addressed it, where NAT had begun to change it.
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
    /// In mid-stream, for an IPVS service that has lost a real server.
    NoDestination,
    /// Its conntrack entry could not be inserted: the tuple that NAT chose, from its source to its
    /// destination, is another entry's.
    Clash { tuple: Flow },
    /// A rule answered with an ICMP error, in these functions; with the tuples of its connection where
    /// that is translated.
    Rejected { stack: Stack, nat: Option<NatTuples> },
    /// netfilter dropped it, and nothing says why: a rule, or a full table. Seen only where there are no
    /// kprobes.
    Netfilter {
        /// The packet had a conntrack entry.
        tracked: bool,
    },
}

impl PacketDrop {
    /// Breaks its connection whatever comes after; a rule's drop may be meant, and shows in what it
    /// leads to.
    pub fn is_failure(&self) -> bool {
        matches!(self.why, DropReason::TableFull | DropReason::NoServer)
    }

    /// The tuples of its connection, where a rule rejected a packet of a translated one.
    pub fn nat(&self) -> Option<NatTuples> {
        match self.why {
            DropReason::Rejected { nat, .. } => nat,
            _ => None,
        }
    }

    /// The tuple that NAT chose and another entry has.
    pub fn clash(&self) -> Option<Flow> {
        match self.why {
            DropReason::Clash { tuple } => Some(tuple),
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

/// Both directions of a translated connection, each as its sender addresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatTuples {
    pub original: Flow,
    pub reply: Flow,
}

impl NatTuples {
    /// How the sender of a packet that NAT has begun to change addressed it. `None` for a packet of
    /// another connection.
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

/// The form that captures hold, since their first version.
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
}

impl From<Stored> for PacketDrop {
    fn from(stored: Stored) -> Self {
        let Stored { packet, table_full, no_server, no_destination, tracked, .. } = stored;
        let why = match (stored.clash, stored.rejected) {
            _ if table_full => DropReason::TableFull,
            _ if no_server => DropReason::NoServer,
            _ if no_destination => DropReason::NoDestination,
            (Some(tuple), _) => DropReason::Clash { tuple },
            (None, Some(stack)) => DropReason::Rejected { stack, nat: stored.nat },
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
        };
        match why {
            DropReason::TableFull => stored.table_full = true,
            DropReason::NoServer => stored.no_server = true,
            DropReason::NoDestination => stored.no_destination = true,
            DropReason::Clash { tuple } => {
                (stored.clash, stored.tracked) = (Some(tuple), true);
            }
            DropReason::Rejected { stack, nat } => {
                (stored.rejected, stored.nat) = (Some(stack), nat);
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
    fn every_reason_is_read_back_from_what_a_capture_holds() {
        let nat = NatTuples {
            original: flow("10.0.0.1:1", "10.0.0.2:2"),
            reply: flow("10.0.0.3:2", "10.0.0.1:1"),
        };
        for why in [
            DropReason::TableFull,
            DropReason::NoServer,
            DropReason::NoDestination,
            DropReason::Clash { tuple: flow("10.0.0.3:2", "10.0.0.1:1") },
            DropReason::Rejected { stack: vec!["nf_send_unreach".into()], nat: Some(nat) },
            DropReason::Netfilter { tracked: true },
            DropReason::Netfilter { tracked: false },
        ] {
            let drop = PacketDrop { packet: data("10.0.0.1:1", "10.0.0.2:2"), why };
            let text = serde_json::to_string(&drop).expect("plain data");
            assert_eq!(serde_json::from_str::<PacketDrop>(&text).expect("its own text"), drop);
        }
    }
}
