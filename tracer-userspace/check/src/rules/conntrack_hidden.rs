//! The conntrack timeouts of 300 s that apply in place of the long established timeout.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_hidden",
    causes: &[CAUSE],
    doc: "An established connection whose last data is unacknowledged, or was retransmitted three times, has \
          only tcp_timeout_unacknowledged or tcp_timeout_max_retrans, 300 s each \
          (net/netfilter/nf_conntrack_proto_tcp.c, nf_conntrack_tcp_packet).",
    judge,
};

const CAUSE: &str = "conntrack_idle_expired";
const UNACKNOWLEDGED: &str = "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged";
const MAX_RETRANS: &str = "net.netfilter.nf_conntrack_tcp_timeout_max_retrans";
/// The default of both.
const DEFAULT_S: u64 = 300;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let translators = input.namespaces().filter(|netns| netns.translates == Some(true));
    translators
        .filter_map(|netns| {
            let (unacked, retrans) = (netns.number(UNACKNOWLEDGED)?, netns.number(MAX_RETRANS)?);
            let least = unacked.min(retrans);
            let rank = if least < DEFAULT_S { Rank::Warn } else { Rank::Info };
            let reason = format!(
                "the entry of a translated connection whose last data was not acknowledged expires {} \
                 after {least} s, whatever the established timeout is",
                netns.place.describe()
            );
            Some(
                CheckFinding::new(RULE.id, rank, &netns.place, reason)
                    .cause(CAUSE)
                    .formula(format!("min(unacknowledged {unacked}, max_retrans {retrans}) = {least} s"))
                    .owner(FixOwner::Node)
                    .source(format!(
                        "{}; {}",
                        origin::of(input.state, netns, UNACKNOWLEDGED),
                        origin::of(input.state, netns, MAX_RETRANS)
                    ))
                    .after(least)
                    .fix(remedies::documented(CAUSE, "keepalive_below_limit")),
            )
        })
        .collect()
}
