//! One side closed an idle connection while the other was reusing it.

use rsttrace_model::{tcp_state, units::human_s};

use super::{
    cause::Cause,
    data_after_close,
    doc::{Detection, Doc, RequiredSignal},
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
        about: "One side, usually a server whose keep-alive timeout had run out, closed a \
                connection that had been idle for 1 s or more. Within 1 s of the close, data \
                arrived from the other side, which had not read the end of the connection. (1 s is \
                the round trip that TCP assumes for an unmeasured path, RFC 6298.) A load balancer \
                in front of the server turns the reset into an occasional 502, less often with \
                more traffic.",
        detections: &[
            Detection::observed(
                "data was answered with a reset for a socket that its owner had closed within the \
                 last second and that had been idle until then; the sender, on this host, had not \
                 read the end of the connection",
                &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("socket_end")],
            ),
            Detection::correlated(
                "the same with the sender on another host",
                &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("socket_end")],
            ),
        ],
        mistaken_for: &[
            (
                "data_after_close",
                "the connection was in use, the process ended, or the sender had read the end of \
                 the connection",
            ),
            ("socket_gone", "no socket was left, not even in TIME_WAIT"),
            ("ipvs_idle_expired", "neither end had closed; the IPVS entry between them was gone"),
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
    reason: "the side that reuses a connection must be the first to close it",
    how: "set the server's keep-alive timeout 15 s above its load balancer's idle timeout, for \
          example 75 s for 60 s",
};

const PROBES: (&str, &str) = (
    "keepalive (SO_KEEPALIVE)",
    "its probes do not count as traffic for the application that measures the idle time",
);

/// A connection counts as idle from this time on, seconds.
const IDLE_S: f64 = 1.0;

/// The other side cannot have known of the close when its data arrives within a round trip after it. This
/// is the timeout that TCP starts with on a path that it has not measured, seconds (RFC 6298, 2.1).
const ROUND_TRIP_S: f64 = 1.0;

/// How long the connection had been idle when it was closed on purpose, seconds.
fn idle_at_close(evidence: &Evidence<'_>) -> Option<f64> {
    let (at, _) = data_after_close::answer(evidence)?;
    let end = at.value.end.as_ref().filter(|end| end.err == 0)?;
    // A process that ended closed everything, idle or not.
    end.idle_s.filter(|idle_s| *idle_s >= IDLE_S && !end.task.exiting)
}

/// Whether the sender of the data had read the FIN and sent anyway.
fn sender_knew_of_close(evidence: &Evidence<'_>) -> bool {
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
    if payload == 0 || after_s > ROUND_TRIP_S || sender_knew_of_close(evidence) {
        return None;
    }
    let (who, idle, after) = (&end.task, human_s(idle_s), human_s(after_s));
    let why = format!(
        "{who} closed the connection after {idle} without traffic, and the peer reused it {after} \
         later"
    );
    // Whether the sender had read the end of the connection is known only for a socket of this host.
    let sender_is_here = evidence.victim().is_some();
    let confidence = if sender_is_here { Confidence::Observed } else { Confidence::Correlated };
    let verdict = Verdict::new(confidence, why)
        .finding(Finding {
            kind: "closed_idle",
            ts: end.ts,
            summary: format!(
                "{who} closed the connection; no payload had been sent in either direction for \
                 {idle}"
            ),
        })
        .finding(Finding {
            kind: "data_after_close",
            ts: at.ts,
            summary: format!("{payload} B arrived {after} later"),
        });
    Some(match confidence {
        Confidence::Observed => verdict,
        _ => verdict
            .prove("check whether the sender had read the end of the connection before it wrote"),
    })
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let (at, _) = data_after_close::answer(evidence)?;
    let end = at.value.end.as_ref()?;
    let after_s = seconds(at.ts.saturating_sub(end.ts));
    if end.task.exiting {
        return Some(
            "the process ended; it did not close the connection because it was idle".into(),
        );
    }
    if end.idle_s? < IDLE_S {
        return Some(format!(
            "the connection had been in use {} before the close",
            human_s(end.idle_s?)
        ));
    }
    if sender_knew_of_close(evidence) {
        return Some("the sender had read the end of the connection before it sent".into());
    }
    Some(format!("the data arrived {} after the close, too late for a race", human_s(after_s)))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some(idle_s) = idle_at_close(evidence) else {
        return Vec::new();
    };
    vec![remedy::pool_below(idle_s), KEEP_LONGER.fix(), remedy::RETRY.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(CAUSE.doc.not_fixes)
}
