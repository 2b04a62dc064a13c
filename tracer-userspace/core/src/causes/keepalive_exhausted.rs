//! Keepalive probes ran out: the peer or the path is gone.

use rsttrace_model::{host_state::Netns, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    reject_rule::CHANGE_RULE,
    remedy, unanswered,
};
use crate::{
    event::has,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "keepalive_exhausted",
    family: Family::Keepalive,
    title: "keepalive probes ran out: the peer or the path is gone",
    doc: Doc {
        about: "With SO_KEEPALIVE on, an idle connection is probed after tcp_keepalive_time (7200 \
                s), then every tcp_keepalive_intvl (75 s), tcp_keepalive_probes (9) times. When no \
                probe is answered, the kernel resets the peer, if there is one, and the \
                application gets ETIMEDOUT, 2 h 11 min 15 s after the last segment \
                (net/ipv4/tcp_timer.c, tcp_keepalive_timer). Keepalive detected that the peer or \
                the path is gone; keepalive did not break the connection.",
        detections: &[Detection::observed(
            "the socket failed with ETIMEDOUT in the keepalive timer, without TCP_USER_TIMEOUT",
            &[RequiredSignal::Any("socket_error"), RequiredSignal::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            (
                "retransmission_timeout",
                "keepalive does not probe while data is outstanding; then the retries count",
            ),
            ("user_timeout", "TCP_USER_TIMEOUT, when set, replaces the count of probes"),
            (
                "a probe answered by a reset",
                "the responder had no state for the connection; the reset has its own cause",
            ),
        ],
        fixes: &[remedy::RESTORE_THE_PATH, CHANGE_RULE, SOONER],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    ..Cause::BASE
};

const SOONER: Remedy = Remedy {
    id: "detect_sooner",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "detect a dead peer sooner",
    reason: "the application can connect again minutes after the peer died, not hours; this does \
             not bring the peer back",
    how: "lower net.ipv4.tcp_keepalive_time, _intvl and _probes in the application's network \
          namespace, or TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT of the socket",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "a longer net.ipv4.tcp_keepalive_time",
    "it only delays the detection of a dead connection",
)];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.timed_out()?;
    let socket = &at.value.socket;
    if !has(&at.value.stack, "tcp_keepalive_timer") || socket.user_timeout_ms != 0 {
        return None;
    }
    let keepalive = socket.keepalive;
    let idle = evidence.idle_s().map_or(String::new(), |s| format!(", idle for {}", human_s(s)));
    let mut verdict = Verdict::new(
        Confidence::Observed,
        format!(
            "{} keepalive probes {} apart went unanswered{idle}",
            keepalive.probes,
            human_s(keepalive.intvl_s)
        ),
    )
    .finding(Finding {
        kind: "keepalive_gave_up",
        ts: at.ts,
        summary: format!(
            "tcp_keepalive_timer gave up after {} probes (time {}, interval {})",
            socket.probes_out,
            human_s(keepalive.time_s),
            human_s(keepalive.intvl_s)
        ),
    });
    let dropped = unanswered::dropped(evidence);
    if dropped.is_none() {
        verdict = verdict.prove(unanswered::FIND_THE_DROP);
    }
    verdict.findings.extend(dropped);
    Some(verdict)
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    unanswered::fixes(evidence, remedy::RESTORE_THE_PATH.fix())
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let mut fixes = vec![remedy::RESTORE_THE_PATH.fix()];
    fixes
        .extend(context.victim_namespaces().into_iter().filter_map(|netns| sooner(context, netns)));
    fixes
}

/// [`SOONER`] with its values; never later than now.
fn sooner(context: &FixContext<'_>, netns: &Netns) -> Option<Fix> {
    let now = |key| context.value(netns, key);
    let (time, intvl, probes) = (now(remedy::TIME)?, now(remedy::INTVL)?, now(remedy::PROBES)?);
    let wanted = (time.min(300), intvl.min(30), probes.min(3));
    Some(Fix {
        summary: format!(
            "detect a dead peer after {} s instead of {} s {}",
            wanted.0 + wanted.1 * wanted.2,
            time + intvl * probes,
            netns.place.describe()
        ),
        current: Some(format!("{time}/{intvl}/{probes}")),
        wanted: Some(format!("{}/{}/{}", wanted.0, wanted.1, wanted.2)),
        changes: remedy::keepalive_sysctls(context, netns, wanted),
        ..SOONER.fix()
    })
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
