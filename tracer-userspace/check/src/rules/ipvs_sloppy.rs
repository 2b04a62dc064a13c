//! sloppy_tcp with several servers: a connection may be sent to another server in mid-stream.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput, TCP};
use crate::{
    finding::{CheckFinding, Rank, service_name, some_of},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_sloppy",
    causes: &[CAUSE],
    doc: "With sloppy_tcp=1, any packet without an entry creates one, to a server that the scheduler chooses \
          (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_conn_schedule). A server other than the former one \
          resets the connection.",
    judge,
};

const CAUSE: &str = "wrong_backend";
const KEY: &str = "net.ipv4.vs.sloppy_tcp";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    input
        .namespaces()
        .filter(|netns| netns.values.is_on(KEY) == Some(true))
        .filter_map(|netns| {
            let several: Vec<_> = netns
                .services
                .iter()
                .flatten()
                .filter(|it| it.protocol == TCP || it.fwmark != 0)
                .filter(|it| it.destinations.iter().filter(|it| it.weight > 0).count() > 1)
                .map(service_name)
                .collect();
            if several.is_empty() {
                return None;
            }
            let reason = format!(
                "a connection that lost its entry {} may be sent to another server and be reset there \
                 (sloppy_tcp=1, several servers behind {})",
                netns.place.describe(),
                some_of(&several)
            );
            Some(
                CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula("sloppy_tcp=1 is harmless with one server for each service")
                    .owner(FixOwner::Node)
                    .source(origin::of(input.state, netns, KEY))
                    .fix(remedies::documented(CAUSE, "keep_flows_on_one_server")),
            )
        })
        .collect()
}
