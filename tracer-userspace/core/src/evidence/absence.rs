//! What did *not* happen. Every negative statement of a verdict is made here, so that none reaches further back
//! than the records do: what was not traced yet, was lost, or may have been forgotten, is not evidence.

use rsttrace_model::{flow::Nanos, units::human_s};

use super::facts::{Evidence, TOLERANCE};
use crate::history::memory::LossKind;

/// A kind of event that says something by its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The end of an IPVS entry.
    IpvsEnd,
    /// The end of the conntrack entry of a connection behind NAT.
    NatEnd,
    /// A packet that a full conntrack table dropped.
    FullTable,
    /// A SYN for which its IPVS service had no server.
    NoServer,
}

impl Watched {
    fn signal(self) -> &'static str {
        match self {
            Self::IpvsEnd => "ipvs_end",
            Self::NatEnd => "conntrack_end",
            Self::FullTable => "conntrack_full",
            Self::NoServer => "ipvs_no_server",
        }
    }

    fn kinds(self) -> &'static [LossKind] {
        match self {
            Self::IpvsEnd => &[LossKind::Ipvs, LossKind::HalfOpenIpvs],
            Self::NatEnd => &[LossKind::Nat, LossKind::HalfOpenNat],
            Self::FullTable | Self::NoServer => &[LossKind::Packet],
        }
    }
}

impl Evidence<'_> {
    /// Since when every event of this kind in `netns`, or in any namespace, is on record. `None` where the
    /// kind is not traced.
    fn known_since(&self, watched: Watched, netns: Option<u32>) -> Option<Nanos> {
        let traced = self.coverage.seen_since(watched.signal())?;
        Some(traced.max(self.memory_begins(watched, netns)))
    }

    fn memory_begins(&self, watched: Watched, netns: Option<u32>) -> Nanos {
        let begins = watched.kinds().iter().map(|kind| self.memory.begins(*kind, netns));
        begins.max().unwrap_or(0)
    }

    /// Whether an event of this kind in `netns`, at most `age_s` seconds before this incident, would be on
    /// record.
    pub fn would_know(&self, watched: Watched, netns: u32, age_s: f64) -> bool {
        let since = self.known_since(watched, Some(netns));
        since.is_some_and(|since| age_s < self.age_s(since))
    }

    /// The time in which no event of this kind happened, if none is on record: "while tracing", "in the last 12
    /// min". `None` where the records do not reach back to the last segment that a victim received, or where no
    /// such segment is known, to the start of tracing: an earlier event would explain as much.
    pub fn absence(&self, watched: Watched) -> Option<String> {
        let since = self.known_since(watched, None)?;
        if since <= self.coverage.started {
            let alive = self.last_received().unwrap_or(Nanos::MAX);
            return (since <= alive.saturating_add(TOLERANCE)).then(|| "while tracing".into());
        }
        let idle = since..=self.case.opened;
        let reaches_back = idle.contains(&self.last_received()?);
        reaches_back.then(|| format!("in the last {}", human_s(self.age_s(since))))
    }

    /// Whether everything that refuses a connect on this host, a rule or an IPVS service without a server, is on
    /// record for the last second: the answer arrives in the softirq of the packet.
    pub fn sees_every_refusal(&self) -> bool {
        const RECENT: Nanos = 1_000_000_000;
        let since = self.case.opened.saturating_sub(RECENT);
        let signals = ["firewall_reset", "firewall_reset6", "ipvs_no_server", "conntrack_full"];
        self.coverage.saw_every_rule(self.case.opened)
            && signals.into_iter().all(|signal| self.coverage.last_gap(signal) < since)
            && self.memory.begins(LossKind::Packet, None) < since
    }

    /// Whether the end of an entry of this connection may have been on record and is not any more, or its
    /// record was lost: since the victim last received, or since tracing began.
    pub fn may_have_forgotten(&self) -> bool {
        let needed = self.last_received().unwrap_or(0).max(self.coverage.started);
        [Watched::IpvsEnd, Watched::NatEnd].into_iter().any(|watched| {
            let gap = self.coverage.last_gap(watched.signal());
            gap.max(self.memory_begins(watched, None)) > needed
        })
    }

    /// Whether no entry of this connection ended, as far as was traced: none is on record, and none was
    /// forgotten.
    pub fn lost_nothing(&self) -> bool {
        !self.has_loss() && !self.may_have_forgotten()
    }
}
