//! The accept queue was full and the kernel answered with a reset.

use super::{Cause, Doc, Family, Need, NotFix, Sign, Verdict, nothing_ruled_out, remedy};
use crate::{
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "listen_overflow",
    family: Family::Capacity,
    title: "the accept queue was full and the kernel answered with a reset",
    doc: Doc {
        about: "A handshake was completed and found no place in the listener's accept queue, which \
                holds the smaller of the listen() argument and net.core.somaxconn. With \
                net.ipv4.tcp_abort_on_overflow=1 the kernel resets the client (tcp_check_req); with 0, \
                the default, it drops the packet in silence and the client tries again.",
        signs: &[Sign::observed(
            "the listener answered the last ACK of a handshake with INVALID_SYN, or before \
                 6.10 from tcp_check_req with more waiting than allowed",
            &[Need::Any("reset_sent"), Need::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            ("connection_refused", "there nobody listens"),
            ("listener_closed", "there the queue was thrown away"),
            (
                "a SYN flood",
                "that fills the queue of half-open connections, and is answered with cookies",
            ),
        ],
        fixes: &[LARGER_BACKLOG],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

const LARGER_BACKLOG: Remedy = Remedy {
    id: "larger_backlog",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "listen with a larger backlog and accept faster",
    reason: "the queue is the smaller of the listen() argument and net.core.somaxconn, fixed when \
             listen() is called: restart the listener",
    how: "listen(fd, n), and net.core.somaxconn of at least n in the listener's network namespace",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "net.core.somaxconn without a restart",
    "the queue's size is fixed when listen() is called",
)];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.listen_overflowed() {
        return None;
    }
    let at = evidence.sent()?;
    let queue = at
        .it
        .socket
        .as_ref()
        .filter(|socket| socket.max_ack_backlog > 0)
        .map(|s| format!(" ({} waiting, {} allowed)", s.ack_backlog, s.max_ack_backlog))
        .unwrap_or_default();
    Some(
        Verdict::new(
            Confidence::Observed,
            format!("the listener's accept queue was full{queue} and tcp_abort_on_overflow is on"),
        )
        .finding(Finding {
            kind: "listen_overflow",
            ts: at.ts,
            summary: format!("a finished handshake found no place in the accept queue{queue}"),
        }),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence.sent().map_or(evidence.case.netns, |at| at.netns);
    let place = evidence.place(netns);
    let now = evidence.host(netns).and_then(|host| host.tcp.somaxconn).map(u64::from);
    let backlog = evidence
        .sent()
        .and_then(|at| at.it.socket.as_ref())
        .map_or(128, |socket| u64::from(socket.max_ack_backlog).max(64));
    let wanted = (backlog * 4).max(now.unwrap_or(0));
    vec![Fix {
        summary: format!("listen with a backlog of {wanted} and accept faster"),
        current: now.map(|value| value.to_string()),
        wanted: Some(wanted.to_string()),
        changes: vec![
            Change::SocketOption { code: format!("listen(fd, {wanted})") },
            Change::Sysctl { place, key: "net.core.somaxconn", from: now, to: wanted },
        ],
        ..LARGER_BACKLOG.fix()
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
