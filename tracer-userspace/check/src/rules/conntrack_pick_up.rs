//! tcp_loose=0: a connection whose entry was lost cannot be picked up.

use rsttrace_core::fix::FixOwner;

use super::{Question, Rule};
use crate::{
    finding::{Finding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_pick_up",
    causes: &[CAUSE],
    doc: "With nf_conntrack_tcp_loose=0 only a SYN makes an entry: after an expiry, a flush or a restart the \
          packets of old connections are INVALID and are not translated.",
    judge,
};

const CAUSE: &str = "conntrack_idle_expired";
const KEY: &str = "net.netfilter.nf_conntrack_tcp_loose";

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let strict = question
        .namespaces()
        .filter(|netns| netns.translates == Some(true) && netns.values.is_on(KEY) == Some(false));
    strict
        .filter_map(|netns| {
            let reason = format!(
                "a connection whose NAT entry is lost {} cannot be picked up again (tcp_loose=0), not even \
                 by its client",
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
                Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula("tcp_loose = 1 where connections outlive their entries; it is 0")
                    .owner(FixOwner::Node)
                    .source(origin::of(question.view, netns, KEY))
                    .fix([fix]),
            )
        })
        .collect()
}
