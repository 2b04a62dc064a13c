//! Packets and entries that conntrack has already dropped.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::host_state::HostState;

use super::{
    Netns, Rule, RuleInput,
    conntrack_room::{self, ROOM},
};
use crate::{
    finding::{CheckFinding, Rank},
    remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_losses",
    causes: &["conntrack_table_full", "conntrack_early_drop", "nat_port_exhausted"],
    doc: "These counters of /proc/net/stat/nf_conntrack, counted since the namespace was created, should be \
          0: drop (no room for an entry), early_drop (an entry was evicted), insert_failed (two entries \
          clashed), chainlength (a bucket was too full).",
    judge,
};

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    input.namespaces().flat_map(|netns| of_netns(input.state, netns)).collect()
}

fn of_netns(state: &HostState, netns: &Netns) -> Vec<CheckFinding> {
    let place = netns.place.describe();
    let stat = &netns.conntrack;
    // The counters keep their values after the table was enlarged.
    let has_room = conntrack_room::percent(state, netns).is_some_and(|percent| percent < ROOM);
    let counters = [
        (
            "drop",
            stat.drop,
            "conntrack_table_full",
            "raise_conntrack_max",
            "packets were dropped because there was no room for a conntrack entry",
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
    counters
        .into_iter()
        .filter_map(|(counter, value, cause, fix, what)| {
            let value = value.filter(|value| *value > 0)?;
            let (rank, now) = match has_room && fix == "raise_conntrack_max" {
                true => (Rank::Info, "; the table has room now"),
                false => (Rank::Warn, ""),
            };
            Some(
                CheckFinding::new(
                    RULE.id,
                    rank,
                    &netns.place,
                    format!("{value} {what} {place}{now}"),
                )
                .cause(cause)
                .formula(format!(
                    "{counter} = 0; now {value}, counted since the namespace was created"
                ))
                .owner(FixOwner::Node)
                .source("/proc/net/stat/nf_conntrack (conntrack -S)")
                .fix(remedies::documented(cause, fix)),
            )
        })
        .collect()
}
