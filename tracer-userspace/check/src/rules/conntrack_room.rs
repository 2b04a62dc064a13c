//! How full the conntrack table is, and whether its size makes sense.

use rsttrace_core::fix::{Fix, FixOwner};
use rsttrace_model::host_state::View;

use super::{Netns, Question, Rule};
use crate::{
    finding::{Finding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_room",
    causes: &[FULL, EVICTED],
    doc: "count < 0.6 × nf_conntrack_max in each namespace; a full table drops new connections in silence \
          and, from 95 % on, evicts entries that nobody answered. Buckets as many as entries: each flow is \
          hashed twice, and a chain of more than 50 refuses entries (nf_conntrack_core.c).",
    judge,
};

const FULL: &str = "conntrack_table_full";
const EVICTED: &str = "conntrack_early_drop";
const MAX: &str = "net.netfilter.nf_conntrack_max";
const COUNT: &str = "net.netfilter.nf_conntrack_count";
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";
/// Percent of the table that a peak may take (the doc above).
pub(super) const ROOM: u64 = 60;
/// `nf_conntrack_max` grows in these steps.
const STEP: u64 = 65_536;

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let view = question.view;
    let Some(max) = view.machine.values.number(MAX) else {
        return Vec::new();
    };
    let mut findings: Vec<_> =
        question.namespaces().flat_map(|netns| fill(view, netns, max)).collect();
    findings.extend(buckets(view, max));
    findings
}

/// How full the table is. `None` without a limit: before 7.2, that is 0.
pub(super) fn percent(view: &View, netns: &Netns) -> Option<u64> {
    let max = view.machine.values.number(MAX).filter(|max| *max != 0)?;
    Some(netns.number(COUNT)? * 100 / max)
}

fn fill(view: &View, netns: &Netns, max: u64) -> Vec<Finding> {
    let (Some(percent), Some(count)) = (percent(view, netns), netns.number(COUNT)) else {
        return Vec::new();
    };
    if percent < ROOM {
        return Vec::new();
    }
    let place = netns.place.describe();
    let finding = |cause, rank, reason: String| {
        Finding::new(RULE.id, rank, &netns.place, reason)
            .cause(cause)
            .formula(format!("count < 0.6 × max: {count} of {max} is {percent} %"))
            .owner(FixOwner::Node)
            .source(machine_source(view, MAX))
            .fix(more_room(view, count.max(max)))
            .fix(remedies::documented(cause, "find_who_fills_it"))
    };
    if percent >= 95 {
        let full = format!(
            "the conntrack table is full {place} ({count} of {max} entries): packets of new connections are \
             dropped in silence"
        );
        let evicted = format!(
            "the conntrack table is full {place} ({count} of {max} entries): entries that nobody answered \
             are evicted"
        );
        return vec![
            finding(FULL, Rank::Break, full).after(0),
            finding(EVICTED, Rank::Warn, evicted),
        ];
    }
    let reason =
        format!("the conntrack table is {percent} % full {place} ({count} of {max} entries)");
    vec![finding(FULL, Rank::Warn, reason)]
}

/// Twice the peak, rounded up; it is the host's number, whoever fills the table.
fn more_room(view: &View, peak: u64) -> Option<Fix> {
    let host = view.initial()?;
    let wanted = (2 * peak).div_ceil(STEP) * STEP;
    let change = |key| {
        let mut change = remedies::set(host, key, wanted)?;
        if let rsttrace_core::fix::Change::Sysctl { from, .. } = &mut change {
            *from = view.machine.values.number(key);
        }
        Some(change)
    };
    Some(Fix {
        summary: format!("raise nf_conntrack_max to {wanted} on the host"),
        current: view.machine.values.text(MAX).ok().map(Into::into),
        wanted: Some(wanted.to_string()),
        changes: [change(MAX), change(BUCKETS)].into_iter().flatten().collect(),
        ..remedies::documented(FULL, "raise_conntrack_max")?
    })
}

fn buckets(view: &View, max: u64) -> Option<Finding> {
    let buckets = view.machine.values.number(BUCKETS).filter(|buckets| *buckets != 0)?;
    let host = view.initial()?;
    let chain = 2 * max / buckets;
    let rank = match max / buckets {
        0..4 => return None,
        4..=9 => Rank::Info,
        _ => Rank::Warn,
    };
    let reason = format!(
        "the conntrack table has {buckets} buckets for {max} entries: chains of {chain} on average when it \
         is full, where the kernel's own ratio gives 2"
    );
    Some(
        Finding::new(RULE.id, rank, &host.place, reason)
            .cause(FULL)
            .formula(format!("2 × max ÷ buckets = 2 × {max} ÷ {buckets} = {chain}"))
            .owner(FixOwner::Node)
            .source(machine_source(view, BUCKETS)),
    )
}

fn machine_source(view: &View, key: &str) -> String {
    view.initial().or(view.namespaces.first()).map_or(String::new(), |it| origin::of(view, it, key))
}
