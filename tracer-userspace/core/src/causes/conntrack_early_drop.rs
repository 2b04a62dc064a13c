//! The conntrack entry of a connection behind NAT was evicted to make room for another.

use rsttrace_model::{conntrack::state_name, flow::Nanos, units::human_s};

use super::{
    cause::Cause,
    conntrack_table_full::{FIND_WHO, RAISE_MAX, more_room, room_on},
    doc::{Doc, Need, Sign},
    remedy,
    scene::Scene,
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
        about: "A connection behind NAT lost its conntrack entry because the table was full. A new \
                connection that finds nf_conntrack_max entries evicts one that is not assured, looking at \
                eight hash buckets (early_drop, NF_CT_EVICTION_RANGE); when that fails, the garbage \
                collector, once the table is over 95 % full, takes such entries and those of closing \
                connections (gc_worker). Assured are the entries of connections whose handshake the node \
                has seen to its end, so the victims are half-open or half-closed ones.",
        signs: &[
            Sign::observed(
                "the entry was deleted below early_drop(), or below gc_worker() before its deadline, \
                 and a stack without state reset the next packet",
                &[
                    Need::Any("conntrack_end"),
                    Need::Full("reset_sent"),
                    Need::Any("kernel_symbols"),
                ],
            ),
            Sign::correlated(
                "the eviction was seen, the sender of the reset was not",
                &[
                    Need::Any("conntrack_end"),
                    Need::Any("reset_received"),
                    Need::Any("kernel_symbols"),
                ],
            ),
        ],
        mistaken_for: &[
            (
                "conntrack_table_full",
                "there the packet in hand is dropped and the entries stay; here an entry goes",
            ),
            ("conntrack_idle_expired", "the collector takes that, too, but after its deadline"),
        ],
        fixes: &[RAISE_MAX, FIND_WHO],
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

/// `nf_conn.timeout` is a jiffy coarse (10 ms at HZ=100); the collector takes what is due as well.
const STILL_VALID: Nanos = 20_000_000;

/// Who took the entry before its time. Both take only what is not assured, the collector also what is
/// closing (`early_drop_list`, `gc_worker_can_early_drop` in nf_conntrack_core.c).
fn evictor(ts: Nanos, end: &ConntrackEnd) -> Option<&'static str> {
    if has(&end.stack, "early_drop") {
        return Some("a new connection that found the table full");
    }
    let before_its_time = end.deadline > ts.saturating_add(STILL_VALID);
    (has(&end.stack, "gc_worker") && end.portid == 0 && before_its_time)
        .then_some("the garbage collector, the table being over 95 % full")
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
                "conntrack entry {} (reply {}) in {} was evicted {place} by {evictor}, {} before",
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
    evictor(loss.ts, end).is_none().then(|| "its conntrack entry was not evicted".into())
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence.conntrack().map_or(evidence.case.netns, |(loss, _)| loss.netns);
    more_room(evidence, netns)
}

fn on_host(scene: &Scene<'_>) -> Vec<Fix> {
    room_on(scene)
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
