//! Timers that were set to the same value.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput, TCP};
use crate::{
    connections::latest_probe,
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "equal_timers",
    causes: &["ipvs_idle_expired", "conntrack_idle_expired"],
    doc: "Timers that are armed by the same packet and are equally long are a race: the keepalive timer \
          fires up to 1/8 late, conntrack compares an exact deadline when the next packet arrives. The \
          keepalive time must be the shortest, and the conntrack timeout longer than the IPVS timeout.",
    judge,
};

const KEEPALIVE: &str = "net.ipv4.tcp_keepalive_time";
const IPVS: &str = "ipvs.tcp";
const CONNTRACK: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    for netns in input.namespaces() {
        let (keepalive, conntrack) = (netns.number(KEEPALIVE), netns.number(CONNTRACK));
        let ipvs = netns.number(IPVS).filter(|_| netns.balances(TCP));
        let place = netns.place.describe();
        let equal = |a: Option<u64>, b: Option<u64>| a.filter(|_| a == b);
        let conntrack_counts = netns.translates == Some(true) || ipvs.is_some();
        let (names, cause, limit_s) = if let Some(limit_s) = equal(keepalive, ipvs) {
            let names = match conntrack == ipvs {
                true => {
                    "tcp_keepalive_time, the IPVS TCP timeout and the conntrack timeout are all"
                }
                false => "tcp_keepalive_time and the IPVS TCP timeout are both",
            };
            (names, "ipvs_idle_expired", limit_s)
        } else if let Some(limit_s) = equal(keepalive, conntrack).filter(|_| conntrack_counts) {
            let names = "tcp_keepalive_time and nf_conntrack_tcp_timeout_established are both";
            (names, "conntrack_idle_expired", limit_s)
        } else {
            continue;
        };
        let reason = format!(
            "{names} {limit_s} s {place}: equal timers are a race that the keepalive loses, because \
             its timer fires up to 1/8 late"
        );
        let sources = match cause {
            "ipvs_idle_expired" => vec![KEEPALIVE, IPVS, CONNTRACK],
            _ => vec![KEEPALIVE, CONNTRACK],
        };
        let sources: Vec<_> = sources
            .into_iter()
            .filter(|key| netns.number(key) == Some(limit_s))
            .map(|key| origin::of(input.state, netns, key))
            .collect();
        findings.push(
            CheckFinding::new(RULE.id, Rank::Break, &netns.place, reason)
                .cause(cause)
                .formula(format!(
                    "keepalive_time × 1.125 < limit, but {limit_s} × 1.125 = {} ≥ {limit_s}; recommended: {}",
                    latest_probe(limit_s),
                    limit_s / 3
                ))
                .owner(FixOwner::Node)
                .source(sources.join("; "))
                .after(limit_s)
                .fix(remedies::keepalive_sysctls(cause, limit_s, &[netns]))
                .fix(Some(remedies::keepalive_below(limit_s, "the timer of the table entry"))),
        );
    }
    findings
}
