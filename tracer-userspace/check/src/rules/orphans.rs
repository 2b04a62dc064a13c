//! Limits on connections that no process holds.

use rsttrace_core::fix::FixOwner;

use super::{Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "orphans",
    causes: &[CAUSE],
    doc: "tcp_max_orphans should be enough for the connections that close at the same time. Beyond it, and \
          when TCP memory runs out, orphans are reset (net/ipv4/tcp.c, tcp_check_oom). TCPAbortOnMemory \
          counts them.",
    judge,
};

const CAUSE: &str = "tcp_resource_limit";
const KEY: &str = "net.ipv4.tcp_max_orphans";
/// Fewer connections than a small server closes at the same time.
const FEW: u64 = 1024;
/// The kernel's default on small machines (net/ipv4/tcp.c, tcp_init: the size of the hash table of
/// connections).
const WANTED: u64 = 4096;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let state = input.state;
    let mut findings = Vec::new();
    let max = state.machine.values.number(KEY).filter(|max| *max < FEW);
    if let (Some(max), Some(host)) = (max, state.initial()) {
        let reason = format!(
            "only {max} connections of the whole machine may finish closing after their process closed \
             them; any further ones are reset"
        );
        let fix = remedies::by_setting(CAUSE, "raise_tcp_limits", host, KEY, WANTED);
        findings.push(
            CheckFinding::new(RULE.id, Rank::Warn, &host.place, reason)
                .cause(CAUSE)
                .formula(format!("tcp_max_orphans ≥ {FEW}; now {max}"))
                .owner(FixOwner::Node)
                .source(origin::of(state, host, KEY))
                .fix(fix),
        );
    }
    for netns in input.namespaces() {
        let Some(count) = netns.tcp.abort_on_memory.filter(|count| *count > 0) else {
            continue;
        };
        let reason = format!(
            "{count} connections were reset because TCP memory or the limit on orphans was exhausted {}",
            netns.place.describe()
        );
        findings.push(
            CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
                .cause(CAUSE)
                .formula(format!(
                    "TCPAbortOnMemory = 0; now {count}, counted since the namespace was created"
                ))
                .owner(FixOwner::Node)
                .source("/proc/net/netstat")
                .fix(remedies::documented(CAUSE, "raise_tcp_limits")),
        );
    }
    findings
}
