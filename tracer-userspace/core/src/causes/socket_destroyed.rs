//! An administrator or agent destroyed the socket.

use rsttrace_model::errno::ECONNABORTED;

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
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
        about: "A privileged process made the kernel abort a socket that it does not own, with `ss \
                -K` or another user of SOCK_DESTROY, or with a BPF program that calls \
                bpf_sock_destroy. The owner gets ECONNABORTED, and the peer gets a reset with ACK \
                (net/ipv4/tcp.c, tcp_abort).",
        detections: &[
            Detection::observed(
                "tcp_abort is on the stack of the reset or of the socket's error, in the context \
                 of the destroying process",
                &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("kernel_symbols")],
            ),
            Detection::observed(
                "the socket failed with ECONNABORTED in tcp_abort, and no reset was sent",
                &[RequiredSignal::Any("socket_error"), RequiredSignal::Any("kernel_symbols")],
            ),
        ],
        mistaken_for: &[
            ("linger_zero", "the owner aborted its own socket"),
            ("process_killed", "the owner died"),
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
    how: "check `ss -K`, CNI agents after an endpoint's removal, and BPF programs, which do this",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("any timeout or keepalive sysctl", "the socket was not idle; it was destroyed")];

/// The time of the destruction and the destroying process, in whose context tcp_abort runs.
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
    remedy::to_not_fixes(NOT_FIXES)
}
