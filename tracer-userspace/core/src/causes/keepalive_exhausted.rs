//! Keepalive probes ran out: the peer or the path is gone.

use rsttrace_model::{host_state::Netns, units::human_s};

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    reject_rule::CHANGE_RULE,
    remedy,
    scene::Scene,
    unanswered,
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
        about: "With SO_KEEPALIVE on, a silent connection is probed after tcp_keepalive_time (7200 \
                s), every tcp_keepalive_intvl (75 s), tcp_keepalive_probes (9) times; when none is \
                answered the kernel resets the peer, if there is one, and the application gets ETIMEDOUT, \
                2 h 11 min 15 s after the last segment (net/ipv4/tcp_timer.c, tcp_keepalive_timer). \
                Keepalive found out that the peer or the path is gone; it is not what broke it.",
        signs: &[Sign::observed(
            "the socket failed with ETIMEDOUT in the keepalive timer, without TCP_USER_TIMEOUT",
            &[Need::Any("socket_error"), Need::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            (
                "retransmission_timeout",
                "keepalive does not probe while data is outstanding: then the retries decide",
            ),
            ("user_timeout", "with TCP_USER_TIMEOUT set it replaces the count of probes"),
            (
                "a probe answered by a reset",
                "somebody answered, and had no state: the reset has its own cause",
            ),
        ],
        fixes: &[RESTORE, CHANGE_RULE, SOONER],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    ..Cause::BASE
};

const RESTORE: Remedy = Remedy {
    id: "restore_the_path",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "find out where the path or the peer went",
    reason: "keepalive did its job: nobody answered",
    how: "was the peer restarted, its node lost, a route or policy changed? look for drops on the \
          way (ipvs, conntrack, firewall) in the minutes before",
};

const SOONER: Remedy = Remedy {
    id: "detect_sooner",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "detect a dead peer sooner",
    reason: "the application can connect again minutes after the peer died, not hours; it does not bring \
             the peer back",
    how: "net.ipv4.tcp_keepalive_time, _intvl and _probes in the application's network namespace, or \
          TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT of the socket",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "a longer net.ipv4.tcp_keepalive_time",
    "it only makes a dead connection look alive for longer",
)];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.timed_out()?;
    let socket = &at.value.socket;
    if !has(&at.value.stack, "tcp_keepalive_timer") || socket.user_timeout_ms != 0 {
        return None;
    }
    let keepalive = socket.keepalive;
    let idle = evidence.idle_s().map_or(String::new(), |s| format!(", silent for {}", human_s(s)));
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
        verdict = verdict.prove(unanswered::WHERE_IT_WENT);
    }
    verdict.findings.extend(dropped);
    Some(verdict)
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    unanswered::fixes(evidence, RESTORE.fix())
}

fn on_host(scene: &Scene<'_>) -> Vec<Fix> {
    let mut fixes = vec![RESTORE.fix()];
    fixes.extend(scene.victims().into_iter().filter_map(|netns| sooner(scene, netns)));
    fixes
}

/// [`SOONER`] with its values; never later than now.
fn sooner(scene: &Scene<'_>, netns: &Netns) -> Option<Fix> {
    let now = |key| scene.value(netns, key);
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
        changes: remedy::keepalive_sysctls(scene, netns, wanted),
        ..SOONER.fix()
    })
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
