//! The conntrack entry of a connection behind NAT expired before the connection was used again.

use rsttrace_model::{
    conntrack,
    host_state::Netns,
    units::{as_seconds, human_s},
};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    causes::cause::Facts,
    event::{ConntrackEnd, has},
    evidence::{Evidence, Watched, seconds},
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_idle_expired",
    family: Family::TimeoutMismatch,
    title: "the conntrack entry that its NAT or a stateful rule needs expired before the connection was used again",
    doc: Doc {
        about: "conntrack keeps the entry of an established connection for 432000 s of idle time, \
                86400 s under kube-proxy. Two limits of 300 s are hidden behind that value: for \
                data that was never acknowledged (nf_conntrack_tcp_timeout_unacknowledged) and \
                after three retransmissions (nf_conntrack_tcp_timeout_max_retrans). Half-closed \
                connections have 60 s (CLOSE_WAIT, 3600 s under kube-proxy) or 120 s (FIN_WAIT) \
                (net/netfilter/nf_conntrack_proto_tcp.c). A connection behind NAT breaks because \
                the translation is lost; conntrack_deleted explains which host then sends the \
                reset. A connection without NAT breaks only where a rule tests the conntrack \
                state: the next packet counts as new, and is rejected or dropped. An expired entry stays in the table until a packet, a dump or the \
                garbage collector finds it, so its deadline counts and not the time of its removal.",
        detections: &[
            Detection::observed(
                "the entry was removed after its deadline, and a TCP stack without this connection \
                 reset the next packet",
                &[RequiredSignal::Any("conntrack_end"), RequiredSignal::Full("reset_sent")],
            ),
            Detection::observed(
                "the entry was removed after its deadline, and a rule rejected a packet that had no entry, in a \
                 namespace whose rules test the conntrack state",
                &[RequiredSignal::Any("conntrack_end"), RequiredSignal::Any("firewall_reset")],
            ),
            Detection::correlated(
                "the removal was seen, the sender of the reset was not; or such a rule dropped the packets without an \
                 answer",
                &[RequiredSignal::Any("conntrack_end"), RequiredSignal::Any("reset_received")],
            ),
            Detection::inferred(
                "a packet of the server arrived untranslated after the connection had been idle \
                 for longer than the longest limit of an entry, and one namespace of this host \
                 does NAT; the entry had ended before tracing began",
                &[RequiredSignal::Full("reset_sent")],
            ),
        ],
        mistaken_for: &[
            (
                "ipvs_idle_expired",
                "an entry that IPVS deleted together with its own is never counted as expired",
            ),
            (
                "conntrack_deleted",
                "there is a netlink port, and the entry's deadline was in the future",
            ),
            (
                "an entry without NAT that no rule needs",
                "nothing breaks; the next packet creates a new entry (tcp_loose=1)",
            ),
        ],
        fixes: &[remedy::KEEPALIVE, RAISE_TIMEOUT, remedy::POOL],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    facts: Facts::Conntrack { limit },
    ..Cause::BASE
};

const RAISE_TIMEOUT: Remedy = Remedy {
    id: "raise_conntrack_timeout",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "raise the conntrack timeout that ran out, in the namespace that held the entry",
    reason: "for clients that cannot send keepalives; it also keeps dead flows longer, and \
             kube-proxy overwrites it at its next start",
    how: "raise the net.netfilter.nf_conntrack_tcp_timeout_* sysctl that the verdict names, in the \
          network namespace that held the entry",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "net.ipv4.tcp_keepalive_* with SO_KEEPALIVE off",
        "the sysctls affect only sockets that have it on",
    ),
    (
        "a keepalive time equal to the limit",
        "timers fire up to 1/8 late, so the entry expires first; a third of the limit survives a \
         lost probe",
    ),
    (
        "net.netfilter.nf_conntrack_max",
        "a full table drops new connections; it does not reset idle ones",
    ),
    (
        "net.netfilter.nf_conntrack_buckets",
        "the hash size has nothing to do with how long an entry lives",
    ),
    (
        "keepalives, where a limit of 300 s ran (max_retrans, unacknowledged)",
        "a socket sends none while its data is not acknowledged",
    ),
    (
        "the sysctl in the client's namespace",
        "the timeouts are per network namespace, and only those of the namespace that held the entry \
         count",
    ),
];

/// The limit of a connection that is open and has nothing unacknowledged: the longest of all.
const ESTABLISHED: &str = "nf_conntrack_tcp_timeout_established";

/// Resolution of the timestamps of segments and of the start of tracing, seconds.
const SLACK_S: f64 = 1.0;

/// Whether the kernel removed the entry because its deadline had passed, and it was not deleted from user
/// space, evicted or flushed.
fn expired(ts: u64, end: &ConntrackEnd) -> bool {
    let other_removals = ["early_drop", "nf_ct_iterate_cleanup", "nf_ct_iterate_cleanup_net"];
    end.portid == 0
        && end.deadline <= ts.saturating_add(5_000_000)
        && !other_removals.iter().any(|function| has(&end.stack, function))
}

/// Time from the last segment that the victim received to the entry's deadline, seconds.
fn ran_s(evidence: &Evidence<'_>) -> Option<f64> {
    let (_, end) = evidence.conntrack()?;
    Some(seconds(end.deadline.saturating_sub(evidence.last_received()?)))
}

/// The sysctl whose timeout ran out, and its value in seconds. The entry holds only a deadline; the time
/// from the last segment to the deadline identifies the limit.
pub fn limit(evidence: &Evidence<'_>) -> Option<(&'static str, u32)> {
    if let Some(translated) = evidence.translated() {
        let table = evidence.host(translated.netns?)?.conntrack.as_ref()?;
        return Some((ESTABLISHED, table.tcp_timeout.established_s?));
    }
    let (loss, end) = evidence.conntrack()?;
    let timeouts = &evidence.host(loss.netns)?.conntrack.as_ref()?.tcp_timeout;
    let by_state = match end.state {
        2 => ("nf_conntrack_tcp_timeout_syn_recv", timeouts.syn_recv_s),
        4 => ("nf_conntrack_tcp_timeout_fin_wait", timeouts.fin_wait_s),
        5 => ("nf_conntrack_tcp_timeout_close_wait", timeouts.close_wait_s),
        _ => (ESTABLISHED, timeouts.established_s),
    };
    let hidden = [
        ("nf_conntrack_tcp_timeout_unacknowledged", timeouts.unacknowledged_s),
        ("nf_conntrack_tcp_timeout_max_retrans", timeouts.max_retrans_s),
    ];
    let mut candidates = vec![by_state];
    candidates.extend(hidden);
    let ran_s = ran_s(evidence);
    let known = candidates.into_iter().filter_map(|(name, value)| Some((name, value?)));
    match ran_s {
        // The entry may have been re-armed after the victim's last received segment, never before it: a
        // longer limit would still be running.
        Some(ran_s) => {
            let known: Vec<_> = known.collect();
            let possible = known.iter().filter(|(_, value)| f64::from(*value) <= ran_s + 1.0);
            // A hidden limit only replaces a longer one (nf_conntrack_proto_tcp.c), so of equal limits the
            // state's own, which comes first, is taken.
            possible.rev().max_by_key(|(_, value)| *value).copied()
        }
        None => known.into_iter().next(),
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    seen(evidence).or_else(|| inferred(evidence))
}

fn seen(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (loss, end) = evidence.conntrack()?;
    if !expired(loss.ts, end) {
        return None;
    }
    let confidence = evidence.lost_entry_confidence();
    let limit =
        limit(evidence).map(|(name, value)| format!(" ({name} = {value} s)")).unwrap_or_default();
    Some(Verdict::new(confidence, format!("its conntrack entry had expired{limit}")).finding(
        Finding {
            kind: "conntrack_expired",
            ts: loss.ts,
            summary: format!(
                "conntrack entry {} (reply {}, {}) expired {} earlier{limit}, {}",
                end.original,
                end.reply,
                conntrack::state_name(end.state),
                human_s(evidence.age_s(end.deadline)),
                evidence.place(loss.netns).describe(),
            ),
        },
    ))
}

/// The entry ended before tracing began, so only arithmetic is left. No entry outlives the longest of its
/// limits.
fn inferred(evidence: &Evidence<'_>) -> Option<Verdict> {
    let translated = evidence.translated()?;
    let at = evidence.stateless()?;
    let place = evidence.place(translated.netns?).describe();
    let (name, limit) = limit(evidence)?;
    let idle_s = evidence.idle_s()?;
    let expired_for_s = idle_s - f64::from(limit);
    let netns = translated.netns?;
    // The end of an entry that still existed when tracing began would have been recorded.
    let would_be_seen = evidence.would_know(Watched::NatEnd, netns, expired_for_s + SLACK_S);
    if translated.has_entry || expired_for_s < 0.0 || would_be_seen {
        return None;
    }
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!(
                "no conntrack entry was left to translate its packet ({name} = {limit} s), and \
                 tracing began after the entry ended"
            ),
        )
        .finding(Finding {
            kind: "conntrack_no_entry",
            ts: at.ts,
            summary: format!(
                "a packet from {} reached the client of {} untranslated; NAT runs {place}, {name} \
                 = {limit} s, idle for {}",
                translated.server,
                translated.original.dst,
                human_s(idle_s),
            ),
        })
        .prove("keep rsttrace running; it then observes the next expiry instead of computing it"),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    match evidence.conntrack() {
        None => {
            let time = evidence.absence(Watched::NatEnd)?;
            Some(format!("no conntrack entry of this connection expired {time}"))
        }
        Some((_, end)) if end.portid != 0 => Some("its conntrack entry was deleted".into()),
        Some(_) => None,
    }
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some(ran_s) =
        limit(evidence).map(|(_, value)| f64::from(value)).or_else(|| ran_s(evidence))
    else {
        return Vec::new();
    };
    let hidden = limit(evidence).is_some_and(|(name, _)| HIDDEN.contains(&name));
    let mut fixes = Vec::new();
    if !hidden {
        fixes.push(remedy::keepalive_below(evidence, ran_s, "the conntrack timer"));
    }
    let netns = (evidence.conntrack().map(|(loss, _)| loss.netns))
        .or_else(|| evidence.translated().and_then(|translated| translated.netns));
    if let (Some(netns), Some((key, limit_s))) = (netns, limit(evidence)) {
        let to = remedy::limit_above(evidence.idle_s().unwrap_or(0.0).max(f64::from(limit_s)));
        let place = evidence.place(netns);
        fixes.push(Fix {
            summary: format!("raise {key} to {to} s {}", place.describe()),
            current: Some(format!("{limit_s} s")),
            wanted: Some(format!("{to} s")),
            changes: vec![Change::Sysctl {
                place,
                key: qualified(key),
                from: Some(u64::from(limit_s)),
                to,
            }],
            ..RAISE_TIMEOUT.fix()
        });
    }
    if !hidden {
        fixes.push(remedy::pool_below(ran_s));
    }
    fixes
}

/// The limits that replace a longer one while data waits for its acknowledgement. No socket sends keepalives then.
const HIDDEN: [&str; 2] =
    ["nf_conntrack_tcp_timeout_unacknowledged", "nf_conntrack_tcp_timeout_max_retrans"];

/// The sysctl's full name.
fn qualified(key: &str) -> &'static str {
    match key {
        "nf_conntrack_tcp_timeout_syn_recv" => "net.netfilter.nf_conntrack_tcp_timeout_syn_recv",
        "nf_conntrack_tcp_timeout_fin_wait" => "net.netfilter.nf_conntrack_tcp_timeout_fin_wait",
        "nf_conntrack_tcp_timeout_close_wait" => {
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait"
        }
        "nf_conntrack_tcp_timeout_unacknowledged" => {
            "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged"
        }
        "nf_conntrack_tcp_timeout_max_retrans" => {
            "net.netfilter.nf_conntrack_tcp_timeout_max_retrans"
        }
        _ => "net.netfilter.nf_conntrack_tcp_timeout_established",
    }
}

/// The limits that apply to an open connection.
const LIMITS: [&str; 3] = [
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged",
    "net.netfilter.nf_conntrack_tcp_timeout_max_retrans",
];

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let namespaces = context.nat_namespaces();
    let limit = |netns: &&Netns| context.value(netns, LIMITS[0]).map(as_seconds);
    let shortest = namespaces.iter().filter_map(limit).reduce(f64::min);
    let mut fixes = remedy::keepalive_on(context, shortest, "the conntrack timer");
    fixes.extend(namespaces.iter().filter_map(|netns| raise(context, netns, limit(netns)?)));
    fixes.push(shortest.map_or_else(|| remedy::POOL.fix(), remedy::pool_below));
    fixes
}

/// Raises every limit that the idle time would reach; the hidden limits apply only when they are shorter
/// than that of the state.
fn raise(context: &FixContext<'_>, netns: &Netns, established_s: f64) -> Option<Fix> {
    // The default of five days (nf_conntrack_proto_tcp.c) is not reached in practice: without a known
    // idle time it needs no raise.
    const DEFAULT_S: f64 = 432_000.0;
    let idle_s = context.idle_s.or((established_s < DEFAULT_S).then_some(established_s * 2.0))?;
    let to = remedy::limit_above(idle_s);
    let too_short =
        LIMITS.iter().filter(|key| context.value(netns, key).is_some_and(|now| now <= to));
    let changes: Vec<_> = too_short.filter_map(|key| context.sysctl(netns, key, to)).collect();
    let place = netns.place.describe();
    (!changes.is_empty()).then(|| Fix {
        summary: format!("raise the conntrack timeouts of open connections to {to} s {place}"),
        current: Some(format!("{established_s:.0} s")),
        wanted: Some(format!("{to} s")),
        changes,
        ..RAISE_TIMEOUT.fix()
    })
}

fn not_fixes(evidence: &Evidence<'_>) -> Vec<NotFix> {
    let limit_s = limit(evidence).map_or(432_000.0, |(_, value)| f64::from(value));
    let mut list = remedy::article_not_fixes(evidence, limit_s);
    if limit(evidence).is_some_and(|(name, _)| HIDDEN.contains(&name)) {
        list.insert(
            0,
            (
                "keepalives, or idle times of a pool".into(),
                "this limit runs while data is not acknowledged; a socket sends no keepalives then"
                    .into(),
            ),
        );
    }
    list.push((
        "net.netfilter.nf_conntrack_buckets".into(),
        "the hash size has nothing to do with how long an entry lives".into(),
    ));
    list
}
