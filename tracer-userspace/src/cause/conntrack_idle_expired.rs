//! The conntrack entry of a connection behind NAT expired before the connection was used again.

use super::{Cause, Family, NotFix, Verdict, human_s, remedy};
use crate::{
    event::ConntrackEnd,
    evidence::{Evidence, has, seconds},
    fix::{Change, Fix, FixOwner, Risk},
    incident::Finding,
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_idle_expired",
    family: Family::TimeoutMismatch,
    title: "the conntrack (NAT) entry expired before the connection was used again",
    judge,
    rule_out,
    fixes,
    not_fixes,
};

/// The kernel's name for a conntrack TCP state (nf_conntrack_proto_tcp.c).
pub fn state_name(state: u32) -> &'static str {
    const NAMES: [&str; 10] = [
        "NONE",
        "SYN_SENT",
        "SYN_RECV",
        "ESTABLISHED",
        "FIN_WAIT",
        "CLOSE_WAIT",
        "LAST_ACK",
        "TIME_WAIT",
        "CLOSE",
        "SYN_SENT2",
    ];
    usize::try_from(state).ok().and_then(|i| NAMES.get(i)).copied().unwrap_or("UNKNOWN")
}

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
    let (loss, end) = evidence.conntrack()?;
    let timeouts = &evidence.host(loss.netns)?.conntrack.as_ref()?.tcp_timeout;
    let by_state = match end.state {
        2 => ("nf_conntrack_tcp_timeout_syn_recv", timeouts.syn_recv_s),
        4 => ("nf_conntrack_tcp_timeout_fin_wait", timeouts.fin_wait_s),
        5 => ("nf_conntrack_tcp_timeout_close_wait", timeouts.close_wait_s),
        _ => ("nf_conntrack_tcp_timeout_established", timeouts.established_s),
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
            possible.max_by_key(|(_, value)| *value).copied()
        }
        None => known.into_iter().next(),
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
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
                state_name(end.state),
                human_s(evidence.age_s(end.deadline)),
                evidence.place(loss.netns).describe(),
            ),
        },
    ))
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
    if let (Some((loss, _)), Some((key, limit_s))) = (evidence.conntrack(), limit(evidence)) {
        let to = remedy::limit_above(evidence.idle_s().unwrap_or(0.0).max(f64::from(limit_s)));
        let place = evidence.place(loss.netns);
        fixes.push(Fix {
            id: "raise_conntrack_timeout",
            owner: FixOwner::Node,
            risk: Risk::Medium,
            summary: format!("raise {key} to {to} s {}", place.describe()),
            reason: "for clients that cannot send keepalives; keeps dead flows longer too, and \
                     kube-proxy overwrites it at its next start"
                .into(),
            current: Some(format!("{limit_s} s")),
            wanted: Some(format!("{to} s")),
            changes: vec![Change::Sysctl {
                place,
                key: qualified(key),
                from: Some(u64::from(limit_s)),
                to,
            }],
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

fn not_fixes(evidence: &Evidence<'_>) -> Vec<NotFix> {
    let limit_s = limit(evidence).map_or(432_000.0, |(_, value)| f64::from(value));
    let mut list = remedy::article(evidence, limit_s);
    list.push((
        "net.netfilter.nf_conntrack_buckets".into(),
        "the hash size has nothing to do with how long an entry lives".into(),
    ));
    list
}
