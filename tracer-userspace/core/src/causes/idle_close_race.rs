//! One side closed an idle connection while the other was reusing it.

use rsttrace_model::{tcp_state, units::human_s};

use super::{
    cause::Cause,
    data_after_close,
    doc::{Doc, Need, Sign},
    remedy,
};
use crate::{
    evidence::{Evidence, seconds},
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "idle_close_race",
    family: Family::TimeoutMismatch,
    title: "one side closed an idle connection while the other was reusing it",
    doc: Doc {
        about: "One side, mostly a server whose keep-alive timeout had run out, closed a connection on \
                which nothing had been said for 1 s or more; within 1 s, which is the round trip that \
                TCP assumes of an unknown path (RFC 6298), data of the other side arrived, which had \
                not read the end of the connection. A load balancer in front turns it into a 502 now and \
                then, rarer with more traffic.",
        signs: &[
            Sign::observed(
                "data was answered for a socket that its owner had closed within the last second, and \
                 that had been idle then; the sender, on this host, had not read the end",
                &[Need::Any("reset_sent"), Need::Any("socket_end")],
            ),
            Sign::correlated(
                "the same with the sender on another host",
                &[Need::Any("reset_sent"), Need::Any("socket_end")],
            ),
        ],
        mistaken_for: &[
            (
                "data_after_close",
                "there the connection was in use, the process ended, or the sender had been told",
            ),
            ("socket_gone", "there not even TIME_WAIT was left"),
            ("ipvs_idle_expired", "there neither end had closed: the entry between them was gone"),
        ],
        fixes: &[remedy::POOL, KEEP_LONGER, remedy::RETRY],
        not_fixes: &[data_after_close::NOT_FIXES[0], PROBES],
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const KEEP_LONGER: Remedy = Remedy {
    id: "closer_keeps_longer",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the side that closed keep idle connections longer than its peer does",
    reason: "whoever reuses a connection must be the first to give it up",
    how: "a server's keep-alive timeout goes above its load balancer's idle timeout with 15 s to \
          spare: 75 s for one of 60 s",
};

const PROBES: (&str, &str) = (
    "keepalive (SO_KEEPALIVE)",
    "its probes are no traffic for the application that counts the idle time",
);

/// The contract calls a connection idle from here on, seconds.
const IDLE_S: f64 = 1.0;

/// The other side cannot have known of the close when its data comes within a round trip of it. TCP
/// takes a path that it has not measured for no slower than this, seconds (RFC 6298, 2.1).
const ROUND_TRIP_S: f64 = 1.0;

/// How long it had been idle when it was closed on purpose, seconds.
fn idle_at_close(evidence: &Evidence<'_>) -> Option<f64> {
    let (at, _) = data_after_close::answer(evidence)?;
    let end = at.value.end.as_ref().filter(|end| end.err == 0)?;
    // A process that ended closed everything, idle or not.
    end.idle_s.filter(|idle_s| *idle_s >= IDLE_S && !end.task.exiting)
}

/// The one that sent the data had read the FIN, and sent all the same.
fn had_been_told(evidence: &Evidence<'_>) -> bool {
    evidence
        .victims()
        .any(|(_, _, socket)| socket.state == tcp_state::CLOSE_WAIT && socket.read_end)
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let idle_s = idle_at_close(evidence)?;
    let (at, _) = data_after_close::answer(evidence)?;
    let end = at.value.end.as_ref()?;
    let payload = at.value.trigger?.payload;
    let after_s = seconds(at.ts.saturating_sub(end.ts));
    if payload == 0 || after_s > ROUND_TRIP_S || had_been_told(evidence) {
        return None;
    }
    let (who, idle, after) = (&end.task, human_s(idle_s), human_s(after_s));
    let why =
        format!("{who} closed it after {idle} without traffic, and it was reused {after} later");
    // Whether the sender had read the end is known of a socket of this host only.
    let sender_is_here = evidence.victim().is_some();
    let confidence = if sender_is_here { Confidence::Observed } else { Confidence::Correlated };
    let verdict = Verdict::new(confidence, why)
        .finding(Finding {
            kind: "closed_idle",
            ts: end.ts,
            summary: format!("{who} closed it; no payload had gone either way for {idle}"),
        })
        .finding(Finding {
            kind: "data_after_close",
            ts: at.ts,
            summary: format!("{payload} B arrived {after} later"),
        });
    Some(match confidence {
        Confidence::Observed => verdict,
        _ => verdict.prove("had the sender read the end of the connection before it wrote?"),
    })
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let (at, _) = data_after_close::answer(evidence)?;
    let end = at.value.end.as_ref()?;
    let after_s = seconds(at.ts.saturating_sub(end.ts));
    if end.task.exiting {
        return Some("the process ended; it did not close for idleness".into());
    }
    if end.idle_s? < IDLE_S {
        return Some(format!("it had been in use {} before the close", human_s(end.idle_s?)));
    }
    if had_been_told(evidence) {
        return Some("the sender had read the end of the connection before it sent".into());
    }
    Some(format!("the data came {} after the close: too late for a race", human_s(after_s)))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some(idle_s) = idle_at_close(evidence) else {
        return Vec::new();
    };
    vec![remedy::pool_below(idle_s), KEEP_LONGER.fix(), remedy::RETRY.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(CAUSE.doc.not_fixes)
}
