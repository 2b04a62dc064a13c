//! The conntrack timeout against the IPVS timeout.

use super::{Rule, RuleInput, TCP};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_before_ipvs",
    causes: &[CAUSE],
    doc: "nf_conntrack_tcp_timeout_established ≥ the IPVS TCP timeout × 1.15. IPVS deletes the conntrack \
          entry together with its own, so conntrack never needs to expire first; when it does, a connection \
          that is also masqueraded may come back with another port.",
    judge,
};

const CAUSE: &str = "conntrack_idle_expired";
const IPVS: &str = "ipvs.tcp";
const CONNTRACK: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let tracked = |it: &&_| netns_tracks(it);
    input
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
                "an idle connection {} expires after {conntrack} s in conntrack and after {ipvs} s in IPVS: if \
                 the conntrack entry expires first and NAT is on top, the connection may come back with \
                 another port and be reset",
                netns.place.describe()
            );
            Some(
                CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula(format!("established ≥ ipvs tcp × 1.15: {conntrack} < {wanted}"))
                    .owner(origin::owner(input.state, netns, CONNTRACK))
                    .source(format!(
                        "{}; {}",
                        origin::of(input.state, netns, CONNTRACK),
                        origin::of(input.state, netns, IPVS)
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

/// Whether conntrack also tracks the connections through IPVS.
fn netns_tracks(netns: &super::Netns) -> bool {
    netns.values.is_on("net.ipv4.vs.conntrack") == Some(true)
}
