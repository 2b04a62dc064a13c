//! Limits on connections that no process holds.

use rsttrace_core::fix::FixOwner;

use super::{Question, Rule};
use crate::{
    finding::{Finding, Rank},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "orphans",
    causes: &[CAUSE],
    doc: "tcp_max_orphans should hold the connections that close at one time; beyond it, and when TCP \
          memory runs out, orphans are reset (net/ipv4/tcp.c, tcp_check_oom). TCPAbortOnMemory counts them.",
    judge,
};

const CAUSE: &str = "tcp_resource_limit";
const KEY: &str = "net.ipv4.tcp_max_orphans";
/// Fewer than a small server closes at one time.
const FEW: u64 = 1024;
/// The kernel's own on small machines (net/ipv4/tcp.c, tcp_init: the size of the hash table of
/// connections).
const WANTED: u64 = 4096;

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let view = question.view;
    let mut findings = Vec::new();
    let max = view.machine.values.number(KEY).filter(|max| *max < FEW);
    if let (Some(max), Some(host)) = (max, view.initial()) {
        let reason = format!(
            "only {max} connections of the whole machine may finish closing after their process let go of \
             them; more are reset"
        );
        let fix = remedies::by_setting(CAUSE, "raise_tcp_limits", host, KEY, WANTED);
        findings.push(
            Finding::new(RULE.id, Rank::Warn, &host.place, reason)
                .cause(CAUSE)
                .formula(format!("tcp_max_orphans ≥ {FEW}; it is {max}"))
                .owner(FixOwner::Node)
                .source(origin::of(view, host, KEY))
                .fix(fix),
        );
    }
    for netns in question.namespaces() {
        let Some(count) = netns.tcp.abort_on_memory.filter(|count| *count > 0) else {
            continue;
        };
        let reason = format!(
            "{count} connections were reset for want of memory or of room for orphans {}",
            netns.place.describe()
        );
        findings.push(
            Finding::new(RULE.id, Rank::Warn, &netns.place, reason)
                .cause(CAUSE)
                .formula(format!(
                    "TCPAbortOnMemory = 0; it is {count} since the namespace was made"
                ))
                .owner(FixOwner::Node)
                .source("/proc/net/netstat")
                .fix(remedies::documented(CAUSE, "raise_tcp_limits")),
        );
    }
    findings
}
