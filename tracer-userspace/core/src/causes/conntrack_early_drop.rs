//! The conntrack entry of a connection behind NAT was evicted to make room for another.

use rsttrace_model::{conntrack::state_name, flow::Nanos, units::human_s};

use super::{
    cause::Cause,
    conntrack_table_full::{FIND_WHO, RAISE_MAX, RESTORE_MAX, more_room, room_on},
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    causes::cause::Facts,
    event::{ConntrackEnd, has},
    evidence::Evidence,
    fix::Fix,
    verdict::{Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_early_drop",
    family: Family::Capacity,
    title: "its conntrack entry was evicted to make room for another",
    doc: Doc {
        about: "A connection behind NAT, or one that a stateful rule lets pass, lost its conntrack \
                entry because the table was full. A new \
                connection that finds nf_conntrack_max entries evicts one entry that is not \
                assured, from eight hash buckets (early_drop, NF_CT_EVICTION_RANGE). When that \
                fails, the garbage collector evicts such entries and those of closing connections, \
                once the table is over 95 % full (gc_worker). An entry is assured when the node \
                has seen the complete handshake, so half-open or half-closed connections are \
                evicted.",
        detections: &[
            Detection::observed(
                "the entry was deleted by early_drop(), or by gc_worker() before its deadline, and \
                 a TCP stack without this connection reset the next packet",
                &[
                    RequiredSignal::Any("conntrack_end"),
                    RequiredSignal::Full("reset_sent"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::correlated(
                "the eviction was seen, the sender of the reset was not",
                &[
                    RequiredSignal::Any("conntrack_end"),
                    RequiredSignal::Any("reset_received"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::inferred(
                "the same, and the server had sent its FIN before; whether it had closed its socket is \
                 not known",
                &[RequiredSignal::Any("conntrack_end")],
            ),
        ],
        mistaken_for: &[
            (
                "conntrack_table_full",
                "the new packet is dropped and existing entries stay; here an existing entry is \
                 evicted",
            ),
            (
                "conntrack_idle_expired",
                "the garbage collector removes expired entries too, but only after their deadline",
            ),
        ],
        fixes: &[RAISE_MAX, FIND_WHO, RESTORE_MAX],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    facts: Facts::CONNTRACK,
    ..Cause::BASE
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "the entry did not time out; a longer timeout keeps the table fuller",
)];

/// `nf_conn.timeout` has a resolution of one jiffy (10 ms at HZ=100); the garbage collector also removes
/// entries that are due. Nanoseconds.
const STILL_VALID: Nanos = 20_000_000;

/// What evicted the entry before its deadline. Both evict entries that are not assured, the garbage
/// collector also those of closing connections (`early_drop_list`, `gc_worker_can_early_drop` in
/// nf_conntrack_core.c).
fn evictor(ts: Nanos, end: &ConntrackEnd) -> Option<&'static str> {
    if has(&end.stack, "early_drop") {
        return Some("a new connection that found the table full");
    }
    let before_deadline = end.deadline > ts.saturating_add(STILL_VALID);
    (has(&end.stack, "gc_worker") && end.portid == 0 && before_deadline)
        .then_some("the garbage collector because the table was over 95 % full")
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, end) = evidence.conntrack()?;
    let evictor = evictor(loss.ts, end)?;
    let place = evidence.place(loss.netns).describe();
    Some(
        Verdict::new(
            evidence.lost_entry_confidence(),
            format!("its conntrack entry had been evicted by {evictor}"),
        )
        .finding(Finding {
            kind: "conntrack_evicted",
            ts: loss.ts,
            summary: format!(
                "conntrack entry {} (reply {}, {}) was evicted {place} by {evictor}, {} earlier",
                end.original,
                end.reply,
                state_name(end.state),
                human_s(evidence.age_s(loss.ts)),
            ),
        }),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let (loss, end) = evidence.conntrack()?;
    // Without kernel symbols nothing shows what removed the entry.
    let is_known = !end.stack.is_empty() && evictor(loss.ts, end).is_none();
    is_known.then(|| "its conntrack entry was not evicted".into())
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence.conntrack().map_or(evidence.case.netns, |(loss, _)| loss.netns);
    more_room(evidence, netns)
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    room_on(context)
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
