//! tcp_loose=0: conntrack cannot pick up a connection whose entry was lost.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_pick_up",
    causes: &[CAUSE],
    doc: "With nf_conntrack_tcp_loose=0 only a SYN creates an entry: after an expiry, a flush or a restart the \
          packets of old connections are INVALID and are not translated.",
    judge,
};

const CAUSE: &str = "conntrack_idle_expired";
const KEY: &str = "net.netfilter.nf_conntrack_tcp_loose";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let strict = input
        .namespaces()
        .filter(|netns| netns.translates == Some(true) && netns.values.is_on(KEY) == Some(false));
    strict
        .filter_map(|netns| {
            let reason = format!(
                "a connection that lost its NAT entry {} cannot be picked up again (tcp_loose=0), not even by \
                 a packet of its client",
                netns.place.describe()
            );
            let change = remedies::set(netns, KEY, 1)?;
            let fix = rsttrace_core::fix::Fix {
                summary: format!("set {KEY}=1 {}", netns.place.describe()),
                current: Some("0".into()),
                wanted: Some("1".into()),
                changes: vec![change],
                ..remedies::documented(CAUSE, "raise_conntrack_timeout")?
            };
            Some(
                CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula("tcp_loose = 1 where connections outlive their entries; now 0")
                    .owner(FixOwner::Node)
                    .source(origin::of(input.state, netns, KEY))
                    .fix([fix]),
            )
        })
        .collect()
}
