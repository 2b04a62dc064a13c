//! IPVS timeouts of half-closed connections: CLOSE_WAIT is fixed, FIN_WAIT is the second of the three.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput, TCP};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_halfclose",
    causes: &[CAUSE],
    doc: "A connection that one side has closed expires after 60 s in CLOSE_WAIT, which no setting changes, \
          or after the second of the three IPVS timeouts in FIN_WAIT \
          (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts).",
    judge,
};

const CAUSE: &str = "ipvs_halfclose_expired";
const KEY: &str = "ipvs.tcpfin";
/// `tcp_timeouts[IP_VS_TCP_S_CLOSE_WAIT]`
const CLOSE_WAIT_S: u64 = 60;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let balancers = input.namespaces().filter(|netns| netns.balances(TCP));
    balancers
        .filter_map(|netns| {
            let fin_s = netns.number(KEY)?;
            let least = fin_s.min(CLOSE_WAIT_S);
            let reason = format!(
                "a half-closed connection through IPVS {} expires after {CLOSE_WAIT_S} s idle in CLOSE_WAIT \
                 and after {fin_s} s idle in FIN_WAIT, whatever the IPVS TCP timeout is",
                netns.place.describe()
            );
            Some(
                CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula(format!(
                        "idle time after a FIN < min(CLOSE_WAIT {CLOSE_WAIT_S}, tcpfin {fin_s}) = {least} s"
                    ))
                    .owner(FixOwner::Application)
                    .source(format!(
                        "CLOSE_WAIT is a constant of the kernel; {}",
                        origin::of(input.state, netns, KEY)
                    ))
                    .after(least)
                    .fix(remedies::documented(CAUSE, "no_half_close"))
                    .fix(remedies::documented(CAUSE, "raise_ipvs_fin_timeout")),
            )
        })
        .collect()
}
