//! IPVS services without a server that accepts new connections.

use rsttrace_model::host_state::is_left_behind;

use super::{Rule, RuleInput, UDP};
use crate::{
    finding::{CheckFinding, Rank, counted, service_name, some_of},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_no_server",
    causes: &[CAUSE],
    doc: "A service needs a real server with a weight above 0; without one, a new connection is answered \
          with an ICMP error (net/netfilter/ipvs/ip_vs_core.c, ip_vs_leave).",
    judge,
};

const CAUSE: &str = "no_backend";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    input
        .namespaces()
        .filter_map(|netns| {
            let services = netns
                .services
                .iter()
                .flatten()
                .filter(|it| it.protocol != UDP && !is_left_behind(input.state, netns, it));
            let empty: Vec<_> = services
                .filter(|it| it.destinations.iter().all(|server| server.weight == 0))
                .map(service_name)
                .collect();
            if empty.is_empty() {
                return None;
            }
            let reason = format!(
                "{} {} no server with a weight above 0: {}; new connections are refused",
                counted(empty.len(), "IPVS service"),
                format_args!(
                    "{} {}",
                    netns.place.describe(),
                    if empty.len() == 1 { "has" } else { "have" }
                ),
                some_of(&empty)
            );
            Some(
                CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula("servers with weight > 0: 0")
                    .owner(origin::balancer(input.state, netns))
                    .source("ipvsadm -Ln")
                    .fix(remedies::documented(CAUSE, "give_it_a_server")),
            )
        })
        .collect()
}
