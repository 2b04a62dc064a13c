//! How full the conntrack table is, and whether its size makes sense.

use rsttrace_core::fix::{Fix, FixOwner};
use rsttrace_model::host_state::HostState;

use super::{Netns, Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_room",
    causes: &[FULL, EVICTED],
    doc: "count < 0.6 × nf_conntrack_max in each namespace. A full table drops new connections without an \
          answer; from 95 % on, entries that are not assured are evicted. As many buckets as entries: each \
          flow is hashed twice, and a chain of more than 50 refuses entries (nf_conntrack_core.c).",
    judge,
};

const FULL: &str = "conntrack_table_full";
const EVICTED: &str = "conntrack_early_drop";
const MAX: &str = "net.netfilter.nf_conntrack_max";
const COUNT: &str = "net.netfilter.nf_conntrack_count";
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";
/// Share of the table that a peak may use, percent (see `doc` above).
pub(super) const ROOM: u64 = 60;
/// `nf_conntrack_max` grows in these steps.
const STEP: u64 = 65_536;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let state = input.state;
    let Some(max) = state.machine.values.number(MAX) else {
        return Vec::new();
    };
    let mut findings: Vec<_> =
        input.namespaces().flat_map(|netns| fill(state, netns, max)).collect();
    findings.extend(buckets(state, max));
    findings
}

/// How full the table is, percent. `None` without a limit: before 7.2, 0 means no limit.
pub(super) fn percent(state: &HostState, netns: &Netns) -> Option<u64> {
    let max = state.machine.values.number(MAX).filter(|max| *max != 0)?;
    Some(netns.number(COUNT)? * 100 / max)
}

fn fill(state: &HostState, netns: &Netns, max: u64) -> Vec<CheckFinding> {
    let (Some(percent), Some(count)) = (percent(state, netns), netns.number(COUNT)) else {
        return Vec::new();
    };
    if percent < ROOM {
        return Vec::new();
    }
    let place = netns.place.describe();
    let finding = |cause, rank, reason: String| {
        CheckFinding::new(RULE.id, rank, &netns.place, reason)
            .cause(cause)
            .formula(format!("count < 0.6 × max: {count} of {max} is {percent} %"))
            .owner(state.initial().map_or(FixOwner::Node, |host| origin::owner(state, host, MAX)))
            .source(machine_source(state, MAX))
            .fix(more_room(state, count.max(max)))
            .fix(remedies::documented(cause, "find_who_fills_it"))
    };
    if percent >= 95 {
        let full = format!(
            "the conntrack table is {percent} % full {place} ({count} of {max} entries): when no entry is free, \
             packets of new connections are dropped without an answer"
        );
        let evicted = format!(
            "the conntrack table is {percent} % full {place} ({count} of {max} entries): when no entry is free, \
             entries that are not assured are evicted"
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

/// Twice the peak, rounded up. The limit is set on the host, whichever namespace fills its table.
fn more_room(state: &HostState, peak: u64) -> Option<Fix> {
    let host = state.initial()?;
    let wanted = (2 * peak).div_ceil(STEP) * STEP;
    let change = |key| {
        let mut change = remedies::set(host, key, wanted)?;
        if let rsttrace_core::fix::Change::Sysctl { from, .. } = &mut change {
            *from = state.machine.values.number(key);
        }
        Some(change)
    };
    Some(Fix {
        summary: format!("raise nf_conntrack_max to {wanted} on the host"),
        current: state.machine.values.text(MAX).ok().map(Into::into),
        wanted: Some(wanted.to_string()),
        changes: [change(MAX), change(BUCKETS)].into_iter().flatten().collect(),
        ..remedies::documented(FULL, "raise_conntrack_max")?
    })
}

fn buckets(state: &HostState, max: u64) -> Option<CheckFinding> {
    let buckets = state.machine.values.number(BUCKETS).filter(|buckets| *buckets != 0)?;
    let host = state.initial()?;
    let chain = 2 * max / buckets;
    let rank = match max / buckets {
        0..4 => return None,
        4..=9 => Rank::Info,
        _ => Rank::Warn,
    };
    let reason = format!(
        "the conntrack table has {buckets} buckets for {max} entries: when full, its chains have {chain} \
         entries on average; the kernel's own ratio gives 2"
    );
    Some(
        CheckFinding::new(RULE.id, rank, &host.place, reason)
            .cause(FULL)
            .formula(format!("2 × max ÷ buckets = 2 × {max} ÷ {buckets} = {chain}"))
            .owner(FixOwner::Node)
            .source(machine_source(state, BUCKETS)),
    )
}

fn machine_source(state: &HostState, key: &str) -> String {
    state
        .initial()
        .or(state.namespaces.first())
        .map_or(String::new(), |it| origin::of(state, it, key))
}
