//! The IPVS defence against memory shortage that deletes entries on purpose.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_defence",
    causes: &[CAUSE],
    doc: "drop_entry deletes entries at random, every second: half-open ones, and established ones that were \
          idle for 60 s and had few packets (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_random_dropentry). \
          Modes 1 and 2 do so when memory is short, mode 3 always.",
    judge,
};

const CAUSE: &str = "ipvs_entry_dropped";
const KEY: &str = "net.ipv4.vs.drop_entry";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    input
        .namespaces()
        .filter_map(|netns| {
            let mode = netns.number(KEY).filter(|mode| *mode != 0)?;
            let place = netns.place.describe();
            let when = if mode == 3 { "at all times" } else { "when memory is short" };
            let reason = format!(
                "IPVS {place} deletes random entries {when} (drop_entry={mode}): their connections are reset"
            );
            Some(
                CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula(format!("drop_entry = 0 (off); now {mode}"))
                    .owner(FixOwner::Node)
                    .source(origin::of(input.state, netns, KEY))
                    .fix(remedies::by_setting(CAUSE, "switch_drop_entry_off", netns, KEY, 0)),
            )
        })
        .collect()
}
