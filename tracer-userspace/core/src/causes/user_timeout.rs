//! TCP_USER_TIMEOUT elapsed.

use rsttrace_model::units::human_s;

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    reject_rule::CHANGE_RULE,
    remedy, unanswered,
};
use crate::{
    event::{Socket, SocketError, has},
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "user_timeout",
    family: Family::Keepalive,
    title: "TCP_USER_TIMEOUT elapsed",
    doc: Doc {
        about: "The application set TCP_USER_TIMEOUT, and for that long no data it had sent was \
                acknowledged, or no probe was answered, or the peer answered but kept its receive \
                window closed. The option replaces tcp_retries2 and the count of keepalive probes; \
                while connecting, tcp_syn_retries applies as well (net/ipv4/tcp_timer.c, \
                tcp_write_timeout and tcp_keepalive_timer).",
        detections: &[Detection::observed(
            "the socket failed with ETIMEDOUT and has the option set",
            &[RequiredSignal::Any("socket_error")],
        )],
        mistaken_for: &[
            ("retransmission_timeout", "the option is off, or the SYNs ran out before it"),
            ("keepalive_exhausted", "the option is off"),
        ],
        fixes: &[remedy::RESTORE_THE_PATH, READ, IN_STEP, CHANGE_RULE],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const READ: Remedy = Remedy {
    id: "keep_reading",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "find out why the peer's application stopped reading; raise TCP_USER_TIMEOUT only if \
              it may pause for so long",
    reason: "the path is fine: the peer answered every window probe, and had no room for data",
    how: "check the receive queue (Recv-Q of ss -tn) and the threads of the peer's process",
};

const IN_STEP: Remedy = Remedy {
    id: "user_timeout_in_step",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "set TCP_USER_TIMEOUT to time + intvl × probes of the keepalive, and to several \
              seconds at least",
    reason: "an idle connection then fails after as many probes as its keepalive settings ask for, \
             and data is retransmitted several times before it fails",
    how: "call setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, MILLISECONDS) with TCP_KEEPIDLE + \
          TCP_KEEPINTVL × TCP_KEEPCNT seconds; the time must be longer than the outages that \
          connections have to survive",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("net.ipv4.tcp_retries2", "TCP_USER_TIMEOUT replaces it for this socket")];

fn timeout_s(socket: &Socket) -> f64 {
    f64::from(socket.user_timeout_ms) / 1000.0
}

/// Whether the peer answered the window probes but never opened its window. Each answer resets the count
/// of probes to 0 (net/ipv4/tcp_input.c, tcp_ack).
fn window_stayed_closed(error: &SocketError) -> bool {
    let socket = &error.socket;
    socket.rcv_nxt != 0
        && socket.snd_wnd == 0
        && (socket.retransmits, socket.probes_out) == (0, 0)
        && !has(&error.stack, "tcp_keepalive_timer")
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.timed_out()?;
    let socket = &at.value.socket;
    // With the option set it replaces the retries of data and the count of probes; while connecting,
    // tcp_syn_retries still applies (net/ipv4/tcp_timer.c, tcp_write_timeout and tcp_keepalive_timer).
    let syn_retries = evidence.host(at.netns).and_then(|host| host.tcp.syn_retries);
    let syns_ran_out = socket.rcv_nxt == 0
        && syn_retries.is_none_or(|retries| u32::from(socket.retransmits) >= retries);
    if socket.user_timeout_ms == 0 || syns_ran_out {
        return None;
    }
    let (how, counted) = if window_stayed_closed(&at.value) {
        ("while the peer kept its receive window closed", "with the peer's window at 0".to_owned())
    } else {
        (
            "without an answer",
            format!(
                "after {} retransmissions and {} probes",
                socket.retransmits, socket.probes_out
            ),
        )
    };
    let mut verdict = Verdict::new(
        Confidence::Observed,
        format!("TCP_USER_TIMEOUT of {} elapsed {how}", human_s(timeout_s(socket))),
    )
    .finding(Finding {
        kind: "user_timeout",
        ts: at.ts,
        summary: format!(
            "the socket gave up at its TCP_USER_TIMEOUT of {} ms {counted}",
            socket.user_timeout_ms
        ),
    });
    let dropped = unanswered::dropped(evidence);
    if dropped.is_none() && !window_stayed_closed(&at.value) {
        verdict = verdict.prove(unanswered::FIND_THE_DROP);
    }
    verdict.findings.extend(dropped);
    Some(verdict)
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let closed = evidence.timed_out().is_some_and(|at| window_stayed_closed(&at.value));
    unanswered::fixes(evidence, if closed { READ } else { remedy::RESTORE_THE_PATH }.fix())
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
