//! Segments out of the window where there is NAT.

use super::{Question, Rule};
use crate::{
    audit::{
        finding::{Finding, Rank},
        origin, remedies,
    },
    fix::FixOwner,
};

pub const RULE: Rule = Rule {
    id: "conntrack_invalid",
    causes: &[CAUSE],
    doc: "With nf_conntrack_tcp_be_liberal=0 a segment outside the window is INVALID and is not translated; \
          the host that gets it under the wrong address answers with a reset \
          (net/netfilter/nf_conntrack_proto_tcp.c, tcp_in_window).",
    judge,
};

const CAUSE: &str = "conntrack_invalid";
const KEY: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let strict = question
        .namespaces()
        .filter(|netns| netns.translates == Some(true) && netns.values.is_on(KEY) == Some(false));
    strict
        .map(|netns| {
            let invalid = netns.conntrack.invalid.unwrap_or(0);
            let seen = match invalid {
                0 => String::new(),
                1 => "; 1 packet was INVALID so far".into(),
                count => format!("; {count} packets were INVALID so far"),
            };
            let reason = format!(
                "a segment outside the window is not translated {} and ends its connection with a reset, \
                 unless a rule drops INVALID packets{seen}",
                netns.place.describe()
            );
            Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
                .cause(CAUSE)
                .formula("NAT and tcp_be_liberal = 0, or a rule `ct state invalid drop`")
                .owner(FixOwner::Node)
                .source(origin::of(question.view, netns, KEY))
                .fix(remedies::by_setting(CAUSE, "conntrack_be_liberal", netns, KEY, 1))
                .fix(remedies::documented(CAUSE, "drop_invalid"))
        })
        .collect()
}
