//! An administrator or agent destroyed the socket.

use rsttrace_model::errno::ECONNABORTED;

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    remedy,
};
use crate::{
    event::has,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "socket_destroyed",
    family: Family::Policy,
    title: "an administrator or agent destroyed the socket (ss -K, SOCK_DESTROY)",
    doc: Doc {
        about: "A privileged process had the kernel abort a socket it does not own: `ss -K` and \
                other users of SOCK_DESTROY, or a BPF program with bpf_sock_destroy. The owner gets \
                ECONNABORTED, the peer a reset with ACK (net/ipv4/tcp.c, tcp_abort).",
        signs: &[
            Sign::observed(
                "tcp_abort is on the stack of the reset or of the socket's error, in the \
                 destroyer's own context",
                &[Need::Any("reset_sent"), Need::Any("kernel_symbols")],
            ),
            Sign::observed(
                "the socket failed with ECONNABORTED in tcp_abort, where nothing was sent",
                &[Need::Any("socket_error"), Need::Any("kernel_symbols")],
            ),
        ],
        mistaken_for: &[
            ("linger_zero", "there the owner aborted its own socket"),
            ("process_killed", "there the owner died"),
        ],
        fixes: &[FIND_DESTROYER],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const FIND_DESTROYER: Remedy = Remedy {
    id: "stop_destroying_sockets",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "find out why the tool destroys sockets",
    reason: "nothing else ended this connection",
    how: "`ss -K`, CNI agents after an endpoint's removal, and BPF programs do this",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("any timeout or keepalive sysctl", "the socket was not idle, it was killed")];

/// Time and destroyer. Destroying runs in the destroyer's own context.
fn destroyed(evidence: &Evidence<'_>) -> Option<(u64, String)> {
    let who = |task: &crate::event::Task| task.to_string();
    if let Some(at) = evidence.active().filter(|at| has(&at.value.stack, "tcp_abort")) {
        return Some((at.ts, who(&at.value.task)));
    }
    let at = evidence
        .case
        .errors
        .iter()
        .find(|at| at.value.socket.err == ECONNABORTED && has(&at.value.stack, "tcp_abort"))?;
    Some((at.ts, who(&at.value.task)))
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, who) = destroyed(evidence)?;
    Some(Verdict::new(Confidence::Observed, format!("{who} destroyed its socket")).finding(
        Finding {
            kind: "socket_destroyed",
            ts,
            summary: format!("{who} called tcp_abort on the socket"),
        },
    ))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let who = destroyed(evidence).map_or("the tool".into(), |(_, who)| who);
    vec![Fix { summary: format!("find out why {who} destroys sockets"), ..FIND_DESTROYER.fix() }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
