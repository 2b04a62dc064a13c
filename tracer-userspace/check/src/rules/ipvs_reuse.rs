//! conn_reuse_mode=0: a reused client port follows its old entry, to a server that is gone or draining.

use rsttrace_core::fix::FixOwner;

use super::{Question, Rule, TCP};
use crate::{
    finding::{Finding, Rank},
    origin,
};

pub const RULE: Rule = Rule {
    id: "ipvs_reuse",
    causes: &["ipvs_server_removed"],
    doc: "With conn_reuse_mode=0 a SYN from a port that an entry still has goes where the entry points, \
          also to a server of weight 0. It was a remedy for a delay of 1 s before 5.9; since then 1 has \
          none (net/netfilter/ipvs/ip_vs_core.c, is_new_conn_expected).",
    judge,
};

const KEY: &str = "net.ipv4.vs.conn_reuse_mode";

fn judge(question: &Question<'_>) -> Vec<Finding> {
    question
        .namespaces()
        .filter(|netns| netns.is(KEY, 0) && netns.balances(TCP))
        .map(|netns| {
            let reason = format!(
                "new connections {} from a port that was used before go to the old server, even one that \
                 drains or is gone (conn_reuse_mode=0)",
                netns.place.describe()
            );
            Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
                .cause("ipvs_server_removed")
                .formula("conn_reuse_mode = 1 from 5.9 on; it is 0")
                .owner(FixOwner::KubeProxy)
                .source(origin::of(question.view, netns, KEY))
        })
        .collect()
}
