//! IPVS defences that forget or refuse connections on purpose.

use rsttrace_core::fix::FixOwner;

use super::{Question, Rule};
use crate::{
    finding::{Finding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "ipvs_defence",
    causes: &[CAUSE],
    doc: "drop_entry ends entries at random, every second: half-open ones, and established ones that were \
          silent for 60 s and had few packets (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_random_dropentry). \
          1 and 2 do so when memory is short, 3 always.",
    judge,
};

const CAUSE: &str = "ipvs_entry_dropped";
const KEY: &str = "net.ipv4.vs.drop_entry";

fn judge(question: &Question<'_>) -> Vec<Finding> {
    question
        .namespaces()
        .filter_map(|netns| {
            let mode = netns.number(KEY).filter(|mode| *mode != 0)?;
            let place = netns.place.describe();
            let when = if mode == 3 { "always" } else { "when memory is short" };
            let reason = format!(
                "IPVS {place} ends entries at random {when} (drop_entry={mode}): their connections are reset"
            );
            Some(
                Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
                    .cause(CAUSE)
                    .formula(format!("drop_entry = 0 is off; it is {mode}"))
                    .owner(FixOwner::Node)
                    .source(origin::of(question.view, netns, KEY))
                    .fix(remedies::by_setting(CAUSE, "switch_drop_entry_off", netns, KEY, 0)),
            )
        })
        .collect()
}
