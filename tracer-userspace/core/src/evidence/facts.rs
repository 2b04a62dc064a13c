//! The evidence for one case: the losses before it, and the state of the namespaces.

use std::{collections::BTreeMap, net::SocketAddr};

use rsttrace_model::{
    conntrack::ConntrackEntry,
    flow::{Flow, Nanos},
    ipvs::{IPPROTO_TCP, IpvsEntry, IpvsService},
    netns::{NetnsReach, NetnsState, Place},
};

use super::{
    coverage::TraceCoverage,
    reconstructed::{Balanced, Translated},
};
use crate::{
    case::{Case, Stamped},
    event::{
        ConntrackEnd, ConntrackInvalid, DropReason, IpvsEnd, IpvsRemoval, IpvsServerRemoved,
        NatChainRemoved, PacketDrop, Session,
    },
    history::{
        baseline::Baseline,
        idle_periods::{Ages, IdlePeriods},
        ipvs_servers::IpvsServers,
        losses::LossEntry,
        memory::Memory,
    },
};

/// A loss and the packet that fails because of it can be in one softirq, and timestamps of segments have the
/// resolution of a jiffy (10 ms at HZ=100).
pub(super) const TOLERANCE: Nanos = 12_000_000;

/// TCP_RTO_MAX (include/net/tcp.h), and a timer that fires late.
const LONGEST_RETRY: Nanos = 130_000_000_000;

/// Latest known state of each namespace.
pub type Hosts = BTreeMap<u32, NetnsState>;

/// The evidence for one case.
pub struct Evidence<'a> {
    pub case: &'a Case,
    pub session: &'a Session,
    pub(super) coverage: &'a TraceCoverage,
    pub(super) memory: &'a Memory,
    pub(super) hosts: &'a Hosts,
    pub(super) ipvs_servers: &'a IpvsServers,
    pub(super) baseline: &'a Baseline,
    pub(super) balanced: Option<Balanced<'a>>,
    pub(super) translated: Option<Translated<'a>>,
    pub(super) ipvs: Option<(&'a LossEntry, &'a IpvsEnd)>,
    pub(super) conntrack: Option<(&'a LossEntry, &'a ConntrackEnd)>,
    /// An entry of the same tuple in another zone ended as well, and a packet does not show its zone.
    pub(super) zone_is_ambiguous: bool,
    pub(super) drops: Vec<(&'a LossEntry, &'a PacketDrop)>,
    pub(super) invalid: Option<(&'a LossEntry, &'a ConntrackInvalid)>,
    pub(super) idle_periods: Option<&'a IdlePeriods>,
}

impl<'a> Evidence<'a> {
    /// The namespaces of the case's records.
    pub fn namespaces(&self) -> Vec<u32> {
        let case = self.case;
        (case.sent.iter().map(|at| at.netns))
            .chain(case.received.iter().map(|at| at.netns))
            .chain(case.errors.iter().map(|at| at.netns))
            .chain(case.drops.iter().map(|at| at.netns))
            .collect()
    }

    /// The end of this connection's IPVS entry, if it is on record and fits.
    pub fn ipvs(&self) -> Option<(&'a LossEntry, &'a IpvsEnd)> {
        self.ipvs
    }

    /// The IPVS entry of this connection, if its real server was found removed when the connection timed out
    /// or its packet was dropped.
    pub fn ipvs_orphan(&self) -> Option<&'a Stamped<IpvsEntry>> {
        let case = self.case;
        // The entry may arrive after the case of its packet was closed. Then the next retry is
        // dropped as well.
        let was_read_for = |ts| {
            let drops = case
                .drops
                .iter()
                .filter(|at| at.value.why == DropReason::NoDestination)
                .map(|at| at.ts);
            case.errors.iter().any(|at| at.ts == ts)
                || drops.into_iter().any(|at| ts <= at && at - ts <= LONGEST_RETRY)
        };
        self.ipvs_servers.orphans(self.case.identity.flows()).find(|at| was_read_for(at.ts))
    }

    /// Whether something happened before the connection broke, and after a victim last received.
    fn may_have_broken(&self, ts: Nanos) -> bool {
        let alive = self.last_received().unwrap_or(0);
        ts <= self.case.opened && ts.saturating_add(TOLERANCE) >= alive
    }

    /// The removal of this connection's real server from IPVS, if it came before the connection broke and
    /// after a victim last received.
    pub fn ipvs_server_removed(
        &self,
        netns: u32,
        virtual_flow: Flow,
        real_flow: Flow,
    ) -> Option<&'a Stamped<IpvsServerRemoved>> {
        let mut removals = self.ipvs_servers.removals(netns, virtual_flow, real_flow);
        removals.find(|at| self.may_have_broken(at.ts))
    }

    /// The removal of a server together with its IPVS service, if it came before the connection broke and
    /// after a victim last received.
    pub fn ipvs_service_removed(
        &self,
        netns: u32,
        service: SocketAddr,
    ) -> Option<&'a Stamped<IpvsServerRemoved>> {
        self.ipvs_servers
            .removals_of(netns, service)
            .find(|at| self.may_have_broken(at.ts))
            .filter(|at| at.value.removal() != IpvsRemoval::Server)
    }

    /// The end of this connection's NAT entry, if it is on record and fits, and IPVS did not delete the entry
    /// together with its own.
    pub fn conntrack(&self) -> Option<(&'a LossEntry, &'a ConntrackEnd)> {
        self.conntrack
    }

    /// Adds the idle times of other connections.
    pub fn with_idle_periods(self, ages: &'a IdlePeriods) -> Self {
        Self { idle_periods: Some(ages), ..self }
    }

    /// The idle times after which connections to the same service broke, and those that connections survived.
    pub fn idle_periods(&self) -> Option<&'a Ages> {
        self.idle_periods?.of(self.client_view()?.dst)
    }

    /// The packet of this connection that conntrack judged INVALID and that this reset answers.
    pub fn invalid(&self) -> Option<(&'a LossEntry, &'a ConntrackInvalid)> {
        self.invalid
    }

    /// Both tuples, original and reply, of the conntrack entry that translates this connection, if a record
    /// shows them.
    pub fn nat_tuples(&self) -> Option<(Flow, Flow)> {
        let ended = self.conntrack.map(|(_, end)| (end.original, end.reply));
        let invalid = self.invalid.map(|(_, it)| (it.original, it.reply));
        let clash = self
            .drops
            .iter()
            .find_map(|(_, drop)| Some((drop.packet.flow, drop.clash()?.reversed())));
        let rejected = self.drops.iter().find_map(|(_, drop)| drop.nat());
        let rejected = rejected.map(|nat| (nat.original, nat.reply));
        let removed = || self.nat_removal().map(|(_, entry)| (entry.original, entry.reply));
        ended.or(invalid).or(clash).or(rejected).or_else(removed)
    }

    /// Whether the end of an entry of this connection is on record, also an end that no cause explains. Then
    /// a missing socket alone does not explain the reset.
    pub fn has_loss(&self) -> bool {
        self.ipvs.is_some() || self.conntrack.is_some()
    }

    /// The test that would show which loss it was, where the victim is not on this host.
    pub fn newest_assumed(&self) -> Option<&'static str> {
        self.last_received().is_none().then_some(
            "the victim's socket is not on this host, so the newest loss of this tuple is assumed: compare \
             the time of the loss with when the client last heard from the server",
        )
    }

    /// Packets of this connection that netfilter dropped, newest first.
    pub fn drops(&self) -> &[(&'a LossEntry, &'a PacketDrop)] {
        &self.drops
    }

    /// How long before the incident something happened, seconds; negative when after.
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    pub fn age_s(&self, ts: Nanos) -> f64 {
        (self.case.opened as f64 - ts as f64) / 1e9
    }

    /// See [`Balanced`]; `None` also where the end of an entry is on record.
    pub fn balanced(&self) -> Option<Balanced<'a>> {
        self.balanced
    }

    /// See [`Translated`]; `None` also where the end of an entry is on record.
    pub fn translated(&self) -> Option<Translated<'a>> {
        self.translated
    }

    pub fn host(&self, netns: u32) -> Option<&'a NetnsState> {
        self.hosts.get(&netns)
    }

    /// The removal of the last NAT chain of its family in a namespace, after a victim last received, and the entry there
    /// that still translates this connection.
    pub fn nat_removal(&self) -> Option<(&'a Stamped<NatChainRemoved>, &'a ConntrackEntry)> {
        let is_v6 = self.case.identity.flows().iter().any(|flow| flow.dst.is_ipv6());
        let last = self.baseline.nat_removals().filter(|at| {
            let left = self.host(at.netns).and_then(|host| host.nat_families);
            let is_last = left.is_some_and(|left| !if is_v6 { left.v6 } else { left.v4 });
            self.may_have_broken(at.ts) && is_last && at.value.is_v6() == is_v6
        });
        last.into_iter().find_map(|at| Some((at, self.translating_entry(at.netns)?)))
    }

    /// The entry of a namespace that translates this connection, as the lookup for one of its packets showed.
    fn translating_entry(&self, netns: u32) -> Option<&'a ConntrackEntry> {
        let errors = self.case.errors.iter().map(|at| (at.netns, at.value.socket.flow));
        let sent = self.case.sent.iter();
        let answered = sent.filter_map(|at| Some((at.netns, at.value.trigger?.flow)));
        let lookups =
            errors.chain(answered).filter_map(|(at, flow)| self.baseline.lookup(at, flow));
        let found = lookups.flat_map(|lookup| &lookup.conntrack).filter(|it| it.netns == netns);
        found.flat_map(|found| &found.entries).find(|entry| entry.translates())
    }

    /// The value from which nf_conntrack_max was lowered to `now` while tracing.
    pub fn conntrack_max_before(&self, now: u32) -> Option<u32> {
        self.baseline.max_before(now)
    }

    /// How an operator enters a namespace.
    pub fn place(&self, netns: u32) -> Place {
        let reach = match self.hosts.get(&netns) {
            Some(host) => host.reach.clone(),
            None if netns == self.session.initial_netns && netns != 0 => NetnsReach::Initial,
            None => NetnsReach::Unknown,
        };
        Place { netns, reach }
    }

    /// The namespace with an IPVS service at an address.
    pub fn balancer_of(&self, address: SocketAddr) -> Option<u32> {
        self.hosts.keys().copied().find(|netns| self.ipvs_service(*netns, address).is_some())
    }

    /// The IPVS service behind an address, in a given namespace.
    pub fn ipvs_service(&self, netns: u32, address: SocketAddr) -> Option<&'a IpvsService> {
        self.hosts.get(&netns)?.ipvs.as_ref()?.services.as_ref()?.iter().find(|service| {
            service.protocol == IPPROTO_TCP
                && service.ip == address.ip()
                && service.port == address.port()
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
pub fn seconds(ns: Nanos) -> f64 {
    ns as f64 / 1e9
}
