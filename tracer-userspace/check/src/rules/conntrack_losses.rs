//! What conntrack has lost already.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::host_state::View;

use super::{
    Netns, Question, Rule,
    conntrack_room::{self, ROOM},
};
use crate::{
    finding::{Finding, Rank},
    remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_losses",
    causes: &["conntrack_table_full", "conntrack_early_drop", "nat_port_exhausted"],
    doc: "The counters of /proc/net/stat/nf_conntrack, since the namespace was made, should be 0: drop (no \
          room for an entry), early_drop (an entry evicted), insert_failed (two entries clashed), \
          chainlength (a bucket was too full).",
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Finding> {
    question.namespaces().flat_map(|netns| of_netns(question.view, netns)).collect()
}

fn of_netns(view: &View, netns: &Netns) -> Vec<Finding> {
    let place = netns.place.describe();
    let stat = &netns.conntrack;
    // The counters stay what they are when the table has been enlarged.
    let has_room = conntrack_room::percent(view, netns).is_some_and(|percent| percent < ROOM);
    let told = [
        (
            "drop",
            stat.drop,
            "conntrack_table_full",
            "raise_conntrack_max",
            "packets were dropped for want of a conntrack entry",
        ),
        (
            "early_drop",
            stat.early_drop,
            "conntrack_early_drop",
            "raise_conntrack_max",
            "conntrack entries were evicted to make room",
        ),
        (
            "insert_failed",
            stat.insert_failed,
            "nat_port_exhausted",
            "more_nat_tuples",
            "new connections were dropped because their conntrack entries clashed",
        ),
        (
            "chainlength",
            stat.chain_too_long,
            "conntrack_table_full",
            "raise_conntrack_max",
            "packets were dropped because a conntrack bucket was too full",
        ),
    ];
    told.into_iter()
        .filter_map(|(counter, value, cause, fix, what)| {
            let value = value.filter(|value| *value > 0)?;
            let (rank, now) = match has_room && fix == "raise_conntrack_max" {
                true => (Rank::Info, "; there is room now"),
                false => (Rank::Warn, ""),
            };
            Some(
                Finding::new(RULE.id, rank, &netns.place, format!("{value} {what} {place}{now}"))
                    .cause(cause)
                    .formula(format!("{counter} = 0; it is {value} since the namespace was made"))
                    .owner(FixOwner::Node)
                    .source("/proc/net/stat/nf_conntrack (conntrack -S)")
                    .fix(remedies::documented(cause, fix)),
            )
        })
        .collect()
}
