//! What netfilter's rules did to a connection, and whether a conntrack entry without NAT was the reason: conntrack picks
//! such a connection up again, so its loss matters only to a rule that tests the conntrack state.

use rsttrace_model::{
    firewall::{RejectingRule, RuleOwner},
    flow::Nanos,
    tcp_flag,
};

use super::facts::{Evidence, TOLERANCE};
use crate::{
    case::Stamped,
    event::{ConntrackEnd, FilteredFlow, PacketDrop, PacketEntry, RuleDrop, Via},
    history::losses::LossEntry,
};

/// A packet of the connection that a rule did not let pass.
struct Stopped {
    netns: u32,
    ts: Nanos,
    entry: PacketEntry,
}

impl<'a> Evidence<'a> {
    /// The packets of this connection that netfilter dropped without an answer after a victim last received, the flow with
    /// the newest one first.
    pub fn rule_drops(&self) -> Vec<&'a RuleDrop> {
        let alive = self.last_received().unwrap_or(0);
        let known = self.filtered().flat_map(|it| &it.drops);
        let mut drops: Vec<_> = known
            .filter(|drop| {
                drop.last <= self.case.opened.saturating_add(TOLERANCE)
                    && drop.last.saturating_add(TOLERANCE) >= alive
            })
            .collect();
        drops.sort_by_key(|drop| std::cmp::Reverse(drop.last));
        drops.dedup_by_key(|drop| drop.flow);
        drops
    }

    /// Whether a rule that did not let a packet of the connection pass depends on this entry: the packet came after its
    /// loss, conntrack had no entry for it, and the rules of that namespace test the conntrack state.
    pub(super) fn rests_on(&self, loss: &LossEntry) -> bool {
        self.baseline.filter_rules(loss.netns).and_then(|rules| rules.stateful) == Some(true)
            && self.stopped().any(|stopped| {
                stopped.netns == loss.netns
                    && stopped.ts.saturating_add(TOLERANCE) >= loss.ts
                    && stopped.entry.was_lost()
            })
    }

    /// The lost entry, if it translated nothing: a rule depended on it.
    pub fn plain_loss(&self) -> Option<(&'a LossEntry, &'a ConntrackEnd)> {
        self.conntrack.filter(|(_, end)| !end.is_nat())
    }

    /// Whether a rule stopped a packet because its connection had no entry, perhaps, and the end of that entry may have
    /// been forgotten, or came before tracing began.
    pub fn may_have_lost_plain_entry(&self) -> bool {
        let since = self.filtered().filter_map(|it| it.ends_since).max();
        let needed = self.last_received().unwrap_or(0);
        let lost = self.stopped().any(|stopped| {
            let rules = self.baseline.filter_rules(stopped.netns);
            stopped.entry.was_lost() && rules.is_some_and(|rules| rules.stateful != Some(false))
        });
        lost && self.conntrack.is_none() && since.is_none_or(|since| since > needed)
    }

    /// The SYN of a connect of this host that failed, which rules of kube-proxy alone can have rejected, and the first of
    /// these rules.
    pub fn rejected_by_kube_proxy(&self) -> Option<(&'a Stamped<PacketDrop>, &'a RejectingRule)> {
        self.error()?;
        self.case.drops.iter().find_map(|at| {
            let packet = &at.value.packet;
            at.value.rejected_by().filter(|_| packet.is_syn())?;
            let rules = &self.baseline.rejecting_rules(at.netns, packet.flow.dst)?.rules;
            let is_its = |rule: &RejectingRule| rule.owner == Some(RuleOwner::KubeProxy);
            Some((at, rules.first().filter(|_| rules.iter().all(is_its))?))
        })
    }

    fn stopped(&self) -> impl Iterator<Item = Stopped> {
        let answered = self.case.sent.iter().filter(|at| {
            at.value.via == Via::Netfilter
                && at.value.trigger.is_some_and(|packet| !packet.has(tcp_flag::SYN))
        });
        let answered =
            answered.map(|at| Stopped { netns: at.netns, ts: at.ts, entry: at.value.entry });
        let refused = self.case.drops.iter().filter_map(|at| {
            Some(Stopped { netns: at.netns, ts: at.ts, entry: at.value.rejected_entry()? })
        });
        let dropped = self.rule_drops().into_iter();
        let dropped = dropped.map(|it| Stopped { netns: it.netns, ts: it.last, entry: it.entry });
        answered.chain(refused).chain(dropped)
    }

    fn filtered(&self) -> impl Iterator<Item = &'a FilteredFlow> {
        let flows = self.case.identity.flows();
        self.baseline.filtered().filter(|it| flows.contains(&it.flow.key()))
    }
}
