//! IPVS timeouts of states that no setting, or only the second one, holds.

use rsttrace_core::fix::FixOwner;

use super::{Question, Rule, TCP};
use crate::{
    finding::{Finding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_halfclose",
    causes: &[CAUSE],
    doc: "A connection of which one side has closed has 60 s in CLOSE_WAIT, which no setting changes, or \
          the second of the three timeouts in FIN_WAIT (net/netfilter/ipvs/ip_vs_proto_tcp.c, \
          tcp_timeouts).",
    judge,
};

const CAUSE: &str = "ipvs_halfclose_expired";
const KEY: &str = "ipvs.tcpfin";
/// `tcp_timeouts[IP_VS_TCP_S_CLOSE_WAIT]`
const CLOSE_WAIT_S: u64 = 60;

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let balancers = question.namespaces().filter(|netns| netns.balances(TCP));
    balancers
        .filter_map(|netns| {
            let fin_s = netns.number(KEY)?;
            let least = fin_s.min(CLOSE_WAIT_S);
            let reason = format!(
                "a connection through IPVS {} of which one side has closed is forgotten after {CLOSE_WAIT_S} \
                 s of silence in CLOSE_WAIT and {fin_s} s in FIN_WAIT, whatever the TCP timeout is",
                netns.place.describe()
            );
            Some(
                Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula(format!(
                        "silence after a FIN < min(CLOSE_WAIT {CLOSE_WAIT_S}, tcpfin {fin_s}) = {least} s"
                    ))
                    .owner(FixOwner::Application)
                    .source(format!(
                        "CLOSE_WAIT is compiled in; {}",
                        origin::of(question.view, netns, KEY)
                    ))
                    .after(least)
                    .fix(remedies::documented(CAUSE, "no_half_close"))
                    .fix(remedies::documented(CAUSE, "raise_ipvs_fin_timeout")),
            )
        })
        .collect()
}
