//! A SYN cookie did not validate.

use rsttrace_model::{host_state::Netns, tcp_flag};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    evidence::{Evidence, seconds},
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "syncookie_failed",
    family: Family::Capacity,
    title: "a SYN cookie did not validate",
    doc: Doc {
        about: "A listener whose queue of half-open connections is full answers a SYN with a \
                cookie and keeps no state. The client's acknowledgement has to return the cookie \
                within two minutes (net/ipv4/syncookies.c, MAX_SYNCOOKIE_AGE) and to the same \
                machine, because each machine has its own secret. Otherwise the acknowledgement \
                belongs to no connection, and the client, which believes it is connected, is reset.",
        detections: &[Detection::correlated(
            "a listener that had answered with cookies within the last two minutes reset a packet \
             of a connection that it never had; it checks each such packet for a cookie",
            &[RequiredSignal::Any("reset_sent")],
        )],
        mistaken_for: &[
            ("wrong_backend", "the connection had been used, with another server"),
            ("listen_overflow", "the queue of finished handshakes was full"),
            ("handshake_rejected", "no cookie had been sent"),
        ],
        fixes: &[remedy::SOMAXCONN, LARGER_QUEUES, SAME_NODE],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    ceiling: Confidence::Correlated,
    ..Cause::BASE
};

const LARGER_QUEUES: Remedy = Remedy {
    id: "larger_syn_queue",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "make the listener's queues large enough that no cookies are needed",
    reason: "a handshake for which the listener keeps state needs no cookie",
    how: "raise net.core.somaxconn and net.ipv4.tcp_max_syn_backlog in the application's network \
          namespace, then restart the application with a larger backlog in listen()",
};

const SAME_NODE: Remedy = Remedy {
    id: "handshake_on_one_node",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "let all packets of a connection reach the same machine",
    reason: "another machine has another secret and rejects the cookie",
    how: "hash flows consistently in front of the machines (ECMP, load balancers); the secret \
          cannot be shared between machines",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "net.ipv4.tcp_syncookies=0",
    "without cookies a full queue drops the SYN, and the client waits instead of being reset",
)];

/// How long a listener checks packets that are not SYNs for a cookie after it has sent one, seconds:
/// TCP_SYNCOOKIE_VALID plus the one-second resolution of its timestamp (include/net/tcp.h). A valid cookie
/// makes a connection, so a reset answers an invalid one.
const CHECKED_FOR_S: f64 = 121.0;

fn checked(evidence: &Evidence<'_>) -> bool {
    let Some(at) = evidence.stateless() else {
        return false;
    };
    let sent = at.value.socket.as_ref().and_then(|listener| listener.cookies_sent);
    let off = evidence.host(at.netns).is_some_and(|host| host.tcp.syncookies == Some(0));
    !off && sent.is_some_and(|sent| seconds(at.ts.saturating_sub(sent)) <= CHECKED_FOR_S)
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.stateless()?;
    // Where the client is on another host, only the last segment of a handshake looks like this: a connection that
    // moved here in mid-stream sends data.
    let is_new = match evidence.victim() {
        Some(_) => evidence.victims_received_nothing(),
        None => at.value.trigger.is_some_and(|it| it.payload == 0 && it.flags == tcp_flag::ACK),
    };
    if !checked(evidence) || at.value.end.is_some() || !is_new || !evidence.lost_nothing() {
        return None;
    }
    let here = at.value.trigger?.flow.dst;
    let failed = evidence
        .host(at.netns)
        .and_then(|host| host.counters.syncookies_failed)
        .map(|count| format!(" ({count} failed cookies since the namespace was created)"))
        .unwrap_or_default();
    Some(
        Verdict::new(
            Confidence::Correlated,
            format!(
                "the listener at {here} had answered with a SYN cookie, which did not validate"
            ),
        )
        .finding(Finding {
            kind: "syncookie_failed",
            ts: at.ts,
            summary: format!(
                "the acknowledgement returned no valid cookie; the listener at {here} has no \
                 connection for the packet{failed}"
            ),
        })
        .prove(
            "check whether TcpExtSyncookiesFailed (nstat -az) of that namespace grows with each \
             such reset, and whether the client's SYN reached this machine",
        ),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let at = evidence.stateless()?;
    (at.value.socket.is_some() && !checked(evidence))
        .then(|| "the listener had sent no cookies in the last two minutes".into())
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let mut queues = LARGER_QUEUES.fix();
    if let Some(at) = evidence.stateless()
        && let Some(host) = evidence.host(at.netns)
    {
        let place = evidence.place(at.netns);
        let mut sysctl = |key, from: Option<u32>| {
            if let Some(from) = from.map(u64::from) {
                let place = place.clone();
                queues.changes.push(Change::Sysctl { place, key, from: Some(from), to: from * 4 });
            }
        };
        sysctl("net.core.somaxconn", host.tcp.somaxconn);
        sysctl("net.ipv4.tcp_max_syn_backlog", host.tcp.max_syn_backlog);
    }
    vec![queues, SAME_NODE.fix()]
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let failed = |netns: &Netns| netns.tcp.syncookies_failed.is_some_and(|count| count > 0);
    let larger = |netns: &Netns| remedy::larger_somaxconn(context, netns);
    let mut fixes: Vec<_> = context.servers(failed).into_iter().filter_map(larger).collect();
    fixes.extend([LARGER_QUEUES.fix(), SAME_NODE.fix()]);
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
