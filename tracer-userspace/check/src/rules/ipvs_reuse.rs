//! conn_reuse_mode=0: a reused client port follows its old entry to a server that was removed or is draining.

use super::{Rule, RuleInput, TCP};
use crate::{
    finding::{CheckFinding, Rank},
    origin,
};

pub const RULE: Rule = Rule {
    id: "ipvs_reuse",
    causes: &["ipvs_server_removed"],
    doc: "With conn_reuse_mode=0, a SYN from a client port that still has an entry goes to the server of that \
          entry, even if its weight is 0. Before 5.9, 0 avoided a delay of 1 s; since then, 1 has no such \
          delay (net/netfilter/ipvs/ip_vs_core.c, is_new_conn_expected).",
    judge,
};

const KEY: &str = "net.ipv4.vs.conn_reuse_mode";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    input
        .namespaces()
        .filter(|netns| netns.is(KEY, 0) && netns.balances(TCP))
        .map(|netns| {
            let reason = format!(
                "new connections {} from a reused client port go to the old server, even if that server is \
                 draining or was removed (conn_reuse_mode=0)",
                netns.place.describe()
            );
            CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                .cause("ipvs_server_removed")
                .formula("conn_reuse_mode = 1 from 5.9 on; now 0")
                .owner(origin::owner(input.state, netns, KEY))
                .source(origin::of(input.state, netns, KEY))
        })
        .collect()
}
