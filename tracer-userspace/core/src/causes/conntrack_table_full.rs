//! A packet was dropped because the conntrack table was full.

use rsttrace_model::{
    conntrack::ConntrackState,
    netns::{NetnsReach, Place},
    tcp_flag,
    units::human_s,
};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    causes::cause::{DropReport, Facts},
    event::DropReason,
    evidence::{Evidence, Watched},
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_table_full",
    family: Family::Capacity,
    title: "a packet was dropped because the conntrack table was full",
    doc: Doc {
        about: "A packet that belongs to no conntrack entry needs a new one. When its namespace \
                holds nf_conntrack_max entries and none can be evicted, the packet is dropped \
                without an answer, neither a reset nor an ICMP error \
                (net/netfilter/nf_conntrack_core.c, __nf_conntrack_alloc). New connections lose \
                their SYN and end in ETIMEDOUT, about 2 minutes later with the default \
                tcp_syn_retries; established ones continue to work. The limit is one value for all \
                namespaces. It is compared with each namespace's own count and is writable only on \
                the host.",
        detections: &[
            Detection::observed(
                "early_drop() found nothing to evict, and the packet was dropped in the same call",
                &[RequiredSignal::Full("conntrack_full")],
            ),
            Detection::correlated(
                "netfilter dropped a packet without an entry while the count was at the maximum",
                &[RequiredSignal::Any("conntrack_full")],
            ),
        ],
        mistaken_for: &[
            (
                "a DROP rule",
                "it also drops without an answer, but the packet has an entry, or the count is \
                 below the maximum",
            ),
            (
                "ECONNRESET on an old, idle connection",
                "a full table does not affect established entries; look for an expiry \
                 (ipvs_idle_expired, conntrack_idle_expired)",
            ),
            (
                "large values in netstat -s",
                "only `drop` in /proc/net/stat/nf_conntrack counts these drops, per namespace",
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
    opens_on_drop: Some(DropReport { what: "lost a packet", unless_timed_out: false }),
    facts: Facts::CONNTRACK,
    ..Cause::BASE
};

pub const RAISE_MAX: Remedy = Remedy {
    id: "raise_conntrack_max",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "raise nf_conntrack_max on the host to twice the peak",
    reason: "an entry costs about 384 B on 6.1 and later, 470 B on 5.10",
    how: "set net.netfilter.nf_conntrack_max and net.netfilter.nf_conntrack_buckets to twice the \
          peak, rounded up to a multiple of 65536; with kube-proxy set its conntrack.min, or it \
          overwrites the value",
};

pub const FIND_WHO: Remedy = Remedy {
    id: "find_who_fills_it",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "find out which flows fill the table, before it fills again",
    reason: "short flows need shorter timeouts or NOTRACK, not a larger table",
    how: "list the entries with conntrack -L and count them by source and destination; then lower \
          net.netfilter.nf_conntrack_tcp_timeout_time_wait, or exempt the flows with NOTRACK",
};

/// For a limit that was lowered while tracing.
pub const RESTORE_MAX: Remedy = Remedy {
    id: "restore_conntrack_max",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "set nf_conntrack_max back to its value before it was lowered",
    reason: "the table was large enough until something lowered its limit",
    how: "find what wrote it (sysctl --system after an edit of /etc/sysctl.d, kube-proxy at its start, \
          a configuration tool), correct it there, and set net.netfilter.nf_conntrack_max back",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "nf_conntrack_max inside a container's namespace",
        "the sysctl is read-only there, even for root",
    ),
    (
        "net.netfilter.nf_conntrack_udp_timeout=300",
        "ten times the default keeps ten times as many UDP entries",
    ),
];

/// One entry on 6.1 and later, bytes: 256 for the slab object and 128 for its extensions; 5.10 needs
/// 470 (measured, see the sizing notes in the shared kernel model).
const ENTRY_BYTES: u64 = 384;
/// New tables grow in steps of this many entries.
const STEP: u64 = 65536;

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (loss, drop) = evidence.drops().iter().find(|(loss, drop)| match drop.why {
        DropReason::TableFull => true,
        DropReason::Netfilter { tracked: false } => is_full(evidence, loss.netns),
        _ => false,
    })?;
    // A reset has its own reason, even after a drop. Only a mid-stream reset that shows lost state can
    // come from such a drop.
    let reset = evidence.sent().is_some() || evidence.received().is_some();
    let in_midstream = !drop.packet.has(tcp_flag::SYN) && evidence.looks_like_lost_state();
    if reset && evidence.timed_out().is_none() && !in_midstream {
        return None;
    }
    let confidence = if drop.why == DropReason::TableFull {
        Confidence::Observed
    } else {
        Confidence::Correlated
    };
    let fill = table(evidence, loss.netns)
        .and_then(|table| Some(format!(" ({} of {} entries)", table.count?, table.max?)));
    let fill = fill.unwrap_or_default();
    let place = evidence.place(loss.netns).describe();
    let ts = loss.seen_by(evidence.case.opened);
    let verdict = Verdict::new(confidence, format!("the conntrack table was full{fill} {place}"))
        .finding(Finding {
            kind: "conntrack_full_drop",
            ts,
            summary: format!(
                "packet {} was dropped {place}: no room for its conntrack entry{fill}, {} earlier",
                drop.packet.flow,
                human_s(evidence.age_s(ts).abs()),
            ),
        });
    Some(match confidence {
        Confidence::Observed => verdict,
        _ => verdict
            .prove("check that `drop` in /proc/net/stat/nf_conntrack of that namespace grows"),
    })
}

fn table<'a>(evidence: &Evidence<'a>, netns: u32) -> Option<&'a ConntrackState> {
    evidence.host(netns)?.conntrack.as_ref()
}

/// Entries at or over the maximum when the packet was dropped.
fn is_full(evidence: &Evidence<'_>, netns: u32) -> bool {
    table(evidence, netns).is_some_and(|table| match (table.count, table.max) {
        (Some(count), Some(max)) => max != 0 && count >= max,
        _ => false,
    })
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let dropped = evidence.drops().iter().any(|(_, drop)| drop.why == DropReason::TableFull);
    if dropped {
        return None;
    }
    let time = evidence.absence(Watched::FullTable)?;
    let fill = evidence
        .case
        .sent
        .iter()
        .map(|at| at.netns)
        .find_map(|netns| {
            let table = table(evidence, netns)?;
            Some(format!("; the table holds {} of {} entries", table.count?, table.max?))
        })
        .unwrap_or_default();
    Some(format!("no packet of this connection was dropped by a full table {time}{fill}"))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence.drops().first().map_or(evidence.case.netns, |(loss, _)| loss.netns);
    more_room(evidence, netns)
}

/// [`RAISE_MAX`] and [`FIND_WHO`], with the values of the namespace whose table is too small.
pub fn more_room(evidence: &Evidence<'_>, netns: u32) -> Vec<Fix> {
    let found = table(evidence, netns);
    let max = found.and_then(|table| table.max).map(u64::from);
    let count = found.and_then(|table| table.count).map(u64::from);
    // The one limit is checked against each namespace's own count and is writable only on the host.
    let host = Place { netns: evidence.session.initial_netns, reach: NetnsReach::Initial };
    let now = found.and_then(|table| table.max);
    if let Some(before) = now.and_then(|now| evidence.conntrack_max_before(now)) {
        return vec![restore(host, now.map(u64::from), before), FIND_WHO.fix()];
    }
    let buckets = found.and_then(|table| table.buckets).map(u64::from);
    vec![raise(host, count, max, buckets), FIND_WHO.fix()]
}

/// [`RESTORE_MAX`] with its values.
fn restore(host: Place, now: Option<u64>, before: u32) -> Fix {
    Fix {
        summary: format!(
            "set nf_conntrack_max back to {before} on the host, and find what lowered it"
        ),
        current: now.map(|now| now.to_string()),
        wanted: Some(before.to_string()),
        changes: vec![Change::Sysctl {
            place: host,
            key: "net.netfilter.nf_conntrack_max",
            from: now,
            to: before.into(),
        }],
        ..RESTORE_MAX.fix()
    }
}

/// Twice the peak, rounded up.
fn wanted(count: Option<u64>, max: Option<u64>) -> u64 {
    (2 * count.max(max).unwrap_or(STEP)).div_ceil(STEP) * STEP
}

/// [`RAISE_MAX`] with its values.
fn raise(host: Place, count: Option<u64>, max: Option<u64>, buckets: Option<u64>) -> Fix {
    let wanted = wanted(count, max);
    let memory_mb = wanted * ENTRY_BYTES / 1_000_000;
    Fix {
        summary: format!("raise nf_conntrack_max to {wanted} on the host"),
        reason: format!(
            "twice the peak, rounded up; costs about {memory_mb} MB when full; with kube-proxy set \
             its conntrack.min, or it overwrites the value"
        ),
        current: max.map(|max| max.to_string()),
        wanted: Some(wanted.to_string()),
        changes: vec![
            Change::Sysctl {
                place: host.clone(),
                key: "net.netfilter.nf_conntrack_max",
                from: max,
                to: wanted,
            },
            Change::Sysctl {
                place: host,
                key: "net.netfilter.nf_conntrack_buckets",
                from: buckets,
                to: wanted,
            },
        ],
        ..RAISE_MAX.fix()
    }
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    room_on(context)
}

/// [`RAISE_MAX`] and [`FIND_WHO`] for a host whose table is, or is about to be, too small.
pub fn room_on(context: &FixContext<'_>) -> Vec<Fix> {
    let machine = &context.view.machine;
    let number = |key| machine.values.number(key);
    let max = number("net.netfilter.nf_conntrack_max");
    let (Some(host), Some(max)) = (context.host(), max) else {
        return vec![RAISE_MAX.fix(), FIND_WHO.fix()];
    };
    let counts = context.view.namespaces.iter();
    let count = counts.filter_map(|it| it.values.number("net.netfilter.nf_conntrack_count")).max();
    let buckets = number("net.netfilter.nf_conntrack_buckets");
    let mut raise = raise(host.place.clone(), count, Some(max), buckets);
    let wanted = wanted(count, Some(max));
    if let Some(ram) = machine.ram_bytes.filter(|ram| wanted * ENTRY_BYTES > ram / 10) {
        raise.risk = Risk::Medium;
        raise.reason.push_str(&format!(
            "; that is more than a tenth of this host's {} MB of memory, so first find out which \
             flows fill the table",
            ram / 1_000_000
        ));
    }
    vec![raise, FIND_WHO.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
