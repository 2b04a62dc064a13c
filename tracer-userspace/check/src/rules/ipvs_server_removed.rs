//! What happens to the connections of a real server that is removed.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput, TCP};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_server_removed",
    causes: &[CAUSE],
    doc: "With expire_nodest_conn=0, packets of a removed server's connections are dropped without an answer \
          until the sender's retries run out; with 1, the connections are reset \
          (net/netfilter/ipvs/ip_vs_core.c, ip_vs_in_hook). Only draining keeps them.",
    judge,
};

const CAUSE: &str = "ipvs_server_removed";
const KEY: &str = "net.ipv4.vs.expire_nodest_conn";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let balancers = input.namespaces().filter(|netns| netns.balances(TCP));
    balancers
        .filter_map(|netns| {
            let place = netns.place.describe();
            let owner = origin::balancer(input.state, netns);
            let (rank, reason) = match netns.values.is_on(KEY)? {
                // Weight 0 first; removed once it has no connections (gracefuldeletion.go, pkg/proxy/ipvs).
                true if owner == FixOwner::KubeProxy => (
                    Rank::Info,
                    format!(
                        "kube-proxy drains a server before it removes the server from IPVS {place}, but the \
                         connections of a Service that is deleted get no answer any more"
                    ),
                ),
                false => (
                    Rank::Warn,
                    format!(
                        "when a real server is removed from IPVS {place}, its connections hang until \
                         their retransmissions run out (expire_nodest_conn=0)"
                    ),
                ),
                true => (
                    Rank::Info,
                    format!(
                        "when a real server is removed from IPVS {place}, its connections are reset \
                         (expire_nodest_conn=1), unless it is drained first"
                    ),
                ),
            };
            let reset = remedies::by_setting(CAUSE, "reset_instead_of_hang", netns, KEY, 1)
                .filter(|_| rank == Rank::Warn);
            Some(
                CheckFinding::new(RULE.id, rank, &netns.place, reason)
                    .cause(CAUSE)
                    .formula("expire_nodest_conn: 0 = no answer, 1 = reset; weight 0 first = neither")
                    .owner(owner)
                    .source(origin::of(input.state, netns, KEY))
                    .fix(
                        (owner != FixOwner::KubeProxy)
                            .then(|| remedies::documented(CAUSE, "drain_before_removal"))
                            .flatten(),
                    )
                    .fix(reset),
            )
        })
        .collect()
}
