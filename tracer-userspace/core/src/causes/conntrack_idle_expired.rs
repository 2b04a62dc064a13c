//! The conntrack entry of a connection behind NAT expired before the connection was used again.

use rsttrace_model::{
    conntrack,
    host_state::Netns,
    units::{as_seconds, human_s},
};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    remedy,
    scene::Scene,
};
use crate::{
    causes::cause::Facts,
    event::{ConntrackEnd, has},
    evidence::{Evidence, seconds},
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_idle_expired",
    family: Family::TimeoutMismatch,
    title: "the conntrack (NAT) entry expired before the connection was used again",
    doc: Doc {
        about: "conntrack gives an established connection 432000 s of silence, 86400 s under \
                kube-proxy. Hidden behind that are two limits of 300 s: for data that was never \
                acknowledged (nf_conntrack_tcp_timeout_unacknowledged) and after three retransmissions \
                (nf_conntrack_tcp_timeout_max_retrans); half-closed connections have 60 s (CLOSE_WAIT, \
                3600 s under kube-proxy) and 120 s (FIN_WAIT) (net/netfilter/nf_conntrack_proto_tcp.c). Only a connection behind \
                NAT breaks, because the translation is lost: see conntrack_deleted for who then resets \
                whom. An expired entry stays in the table until a packet, a dump or the garbage collector \
                meets it, so its deadline counts and not the moment of its removal.",
        signs: &[
            Sign::observed(
                "the entry was removed after its deadline, and a stack without state reset the \
                 next packet",
                &[Need::Any("conntrack_end"), Need::Full("reset_sent")],
            ),
            Sign::correlated(
                "the removal was seen, the sender of the reset was not",
                &[Need::Any("conntrack_end"), Need::Any("reset_received")],
            ),
            Sign::inferred(
                "a packet of the server came back untranslated after more silence than the longest limit \
                 of an entry, and one namespace of this host does NAT; it had ended before tracing began",
                &[Need::Full("reset_sent")],
            ),
        ],
        mistaken_for: &[
            ("ipvs_idle_expired", "an entry that IPVS took along is never counted as expired"),
            ("conntrack_deleted", "a netlink port, and a deadline in the future"),
            (
                "an entry without NAT",
                "nothing breaks: the next packet makes a new one (tcp_loose=1)",
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
    summary: "raise the conntrack timeout that ran out, where the NAT is done",
    reason: "for clients that cannot send keepalives; keeps dead flows longer too, and kube-proxy \
             overwrites it at its next start",
    how: "the net.netfilter.nf_conntrack_tcp_timeout_* that the verdict names, in the network \
          namespace that does the NAT",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "net.ipv4.tcp_keepalive_* with SO_KEEPALIVE off",
        "the sysctls only reach sockets that have it on",
    ),
    (
        "a keepalive time equal to the limit",
        "timers fire up to 1/8 late, so it loses the race; a third of the limit survives a lost \
         probe",
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
        "the sysctl in the client's namespace",
        "the timeouts are per network namespace: the one that does the NAT counts",
    ),
];

/// The limit of a connection that is open and has nothing unacknowledged: the longest of all.
const ESTABLISHED: &str = "nf_conntrack_tcp_timeout_established";

/// The stamps of segments and of our own start are this coarse, seconds.
const SLACK_S: f64 = 1.0;

/// The kernel took it because its time was up: not a user's deletion, not an eviction, not a flush.
fn expired(ts: u64, end: &ConntrackEnd) -> bool {
    let other = ["early_drop", "nf_ct_iterate_cleanup", "nf_ct_iterate_cleanup_net"];
    end.portid == 0
        && end.deadline <= ts.saturating_add(5_000_000)
        && !other.iter().any(|function| has(&end.stack, function))
}

/// From the last segment that the victim received to the entry's deadline, seconds.
fn ran_s(evidence: &Evidence<'_>) -> Option<f64> {
    let (_, end) = evidence.conntrack()?;
    Some(seconds(end.deadline.saturating_sub(evidence.last_received()?)))
}

/// The sysctl whose value ran, and that value in seconds. The entry only holds a deadline; the
/// distance from the last segment to it names the limit.
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
        // The entry may have been re-armed after the victim heard last, never before: a longer limit
        // would still be running.
        Some(ran_s) => {
            let known: Vec<_> = known.collect();
            let possible = known.iter().filter(|(_, value)| f64::from(*value) <= ran_s + 1.0);
            // A hidden limit only replaces a longer one (nf_conntrack_proto_tcp.c): of equals, the
            // state's own, which comes first.
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
                "conntrack entry {} (reply {}) in {} ran out {} before{limit}, {}",
                end.original,
                end.reply,
                conntrack::state_name(end.state),
                human_s(evidence.age_s(end.deadline)),
                evidence.place(loss.netns).describe(),
            ),
        },
    ))
}

/// The entry went before tracing began: only arithmetic is left. No entry outlives the longest of its
/// limits.
fn inferred(evidence: &Evidence<'_>) -> Option<Verdict> {
    let translated = evidence.translated()?;
    let at = evidence.stateless()?;
    let place = evidence.place(translated.netns?).describe();
    let (name, limit) = limit(evidence)?;
    let idle_s = evidence.idle_s()?;
    let expired_for_s = idle_s - f64::from(limit);
    let watched_s = evidence.age_s(evidence.started());
    // An entry that tracing found alive would have been seen to end.
    let would_be_seen =
        evidence.session.covers("conntrack_end") && expired_for_s < watched_s - SLACK_S;
    if translated.has_entry || expired_for_s < 0.0 || would_be_seen {
        return None;
    }
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!(
                "no conntrack entry was left to translate it ({name} = {limit} s), and tracing began \
                 after it ended"
            ),
        )
        .finding(Finding {
            kind: "conntrack_no_entry",
            ts: at.ts,
            summary: format!(
                "a packet of {} reached the client of {} untranslated; NAT is done {place}, {name} = \
                 {limit} s, idle for {}",
                translated.server,
                translated.original.dst,
                human_s(idle_s),
            ),
        })
        .prove("keep rsttrace running: the next expiry is then seen, not computed"),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    if !evidence.session.covers("conntrack_end") {
        return None;
    }
    match evidence.conntrack() {
        None => Some("no conntrack entry of it expired on its own while tracing".into()),
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
    let mut fixes = vec![remedy::keepalive_below(evidence, ran_s, "the conntrack timer")];
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
    fixes.push(remedy::pool_below(ran_s));
    fixes
}

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

/// The limits that an open connection meets.
const LIMITS: [&str; 3] = [
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged",
    "net.netfilter.nf_conntrack_tcp_timeout_max_retrans",
];

fn on_host(scene: &Scene<'_>) -> Vec<Fix> {
    let translators = scene.translators();
    let limit = |netns: &&Netns| scene.value(netns, LIMITS[0]).map(as_seconds);
    let shortest = translators.iter().filter_map(limit).reduce(f64::min);
    let mut fixes = remedy::keepalive_on(scene, shortest, "the conntrack timer");
    fixes.extend(translators.iter().filter_map(|netns| raise(scene, netns, limit(netns)?)));
    fixes.push(shortest.map_or_else(|| remedy::POOL.fix(), remedy::pool_below));
    fixes
}

/// Every limit that the silence would reach; the hidden ones count only below that of the state.
fn raise(scene: &Scene<'_>, netns: &Netns, established_s: f64) -> Option<Fix> {
    // Five days (nf_conntrack_proto_tcp.c) is no limit that anybody meets: then say how long.
    const DEFAULT_S: f64 = 432_000.0;
    let idle_s = scene.idle_s.or((established_s < DEFAULT_S).then_some(established_s * 2.0))?;
    let to = remedy::limit_above(idle_s);
    let too_short =
        LIMITS.iter().filter(|key| scene.value(netns, key).is_some_and(|now| now <= to));
    let changes: Vec<_> = too_short.filter_map(|key| scene.sysctl(netns, key, to)).collect();
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
    let mut list = remedy::article(evidence, limit_s);
    list.push((
        "net.netfilter.nf_conntrack_buckets".into(),
        "the hash size has nothing to do with how long an entry lives".into(),
    ));
    list
}
