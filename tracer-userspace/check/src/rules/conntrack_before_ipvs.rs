//! The conntrack timeout against the IPVS timeout.

use rsttrace_core::fix::FixOwner;

use super::{Question, Rule, TCP};
use crate::{
    finding::{Finding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_before_ipvs",
    causes: &[CAUSE],
    doc: "nf_conntrack_tcp_timeout_established ≥ the IPVS TCP timeout × 1.15. IPVS takes the conntrack \
          entry with it, so conntrack never needs to be first; when it is, a connection that is also \
          masqueraded may come back with another port.",
    judge,
};

const CAUSE: &str = "conntrack_idle_expired";
const IPVS: &str = "ipvs.tcp";
const CONNTRACK: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let tracked = |it: &&_| netns_tracks(it);
    question
        .namespaces()
        .filter(|netns| netns.balances(TCP))
        .filter(tracked)
        .filter_map(|netns| {
            let (ipvs, conntrack) = (netns.number(IPVS)?, netns.number(CONNTRACK)?);
            let wanted = (ipvs * 115).div_ceil(100);
            if conntrack >= wanted {
                return None;
            }
            let reason = format!(
                "conntrack forgets a silent connection after {conntrack} s {}, and IPVS after {ipvs} s, not before: with NAT \
                 on top it may come back with another port and be reset",
                netns.place.describe()
            );
            Some(
                Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula(format!("established ≥ ipvs tcp × 1.15: {conntrack} < {wanted}"))
                    .owner(FixOwner::Node)
                    .source(format!(
                        "{}; {}",
                        origin::of(question.view, netns, CONNTRACK),
                        origin::of(question.view, netns, IPVS)
                    ))
                    .after(conntrack)
                    .fix(remedies::by_setting(
                        CAUSE,
                        "raise_conntrack_timeout",
                        netns,
                        CONNTRACK,
                        wanted.max(86_400),
                    )),
            )
        })
        .collect()
}

/// IPVS connections are tracked by netfilter too.
fn netns_tracks(netns: &super::Netns) -> bool {
    netns.values.is_on("net.ipv4.vs.conntrack") == Some(true)
}
