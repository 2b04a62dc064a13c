//! The accept queue was full: the kernel answered with a reset, or not at all.

use rsttrace_model::host_state::Netns;

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    case::Stamped,
    event::ResetSent,
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "listen_overflow",
    family: Family::Capacity,
    title: "the accept queue was full and the kernel answered with a reset or not at all",
    doc: Doc {
        about: "A handshake found no place in the listener's accept queue, which holds one more \
                than the smaller of the listen() argument and net.core.somaxconn. A SYN that finds \
                the queue full is dropped, and the connect times out. The last ACK of a handshake \
                that finds the queue full is dropped too. The client then believes it is connected \
                and sends data without an answer, until its retries run out or the listener has \
                discarded the handshake and resets the connection. With \
                net.ipv4.tcp_abort_on_overflow=1 the client is reset at once (tcp_check_req).",
        detections: &[
            Detection::observed(
                "the listener reset the last ACK of a handshake with reason INVALID_SYN (6.10 on)",
                &[RequiredSignal::Any("reset_sent")],
            ),
            Detection::observed(
                "before 6.10: the listener reset the last ACK of a handshake from tcp_check_req, \
                 with more connections waiting than allowed",
                &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("kernel_symbols")],
            ),
            Detection::correlated(
                "a socket that had never received an answer from its peer's application timed out, \
                 and the accept queue of the listener, on this host, was full",
                &[RequiredSignal::Any("socket_error")],
            ),
            Detection::correlated(
                "a listener with a full queue reset a packet of a connection that it never had",
                &[RequiredSignal::Any("reset_sent")],
            ),
        ],
        mistaken_for: &[
            ("connection_refused", "no process listens on the port"),
            ("listener_closed", "the listener was closed together with its queue"),
            ("retransmission_timeout", "the packets were lost on the path"),
            (
                "a SYN flood",
                "a flood fills the queue of half-open connections, and the kernel answers with SYN \
                 cookies",
            ),
        ],
        fixes: &[remedy::SOMAXCONN, LARGER_BACKLOG, PATIENT],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    ..Cause::BASE
};

const LARGER_BACKLOG: Remedy = Remedy {
    id: "larger_backlog",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "listen with a larger backlog and accept faster",
    reason: "the queue is the smaller of the listen() argument and net.core.somaxconn, fixed when \
             listen() is called: restart the listener",
    how: "set net.core.somaxconn to at least n in the listener's network namespace, then restart \
          the listener with listen(fd, n)",
};

const PATIENT: Remedy = Remedy {
    id: "switch_abort_on_overflow_off",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "let a full accept queue drop packets instead of resetting clients",
    reason: "the client retransmits its data, and is served if the queue has room by then",
    how: "set net.ipv4.tcp_abort_on_overflow=0 in the listener's network namespace",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "net.core.somaxconn without a restart",
    "the queue's size is fixed when listen() is called",
)];

/// A listener's accept queue: its namespace, how many connections wait and how many are allowed.
struct Queue {
    netns: u32,
    waiting: u32,
    allowed: u32,
}

impl Queue {
    fn of(at: &Stamped<ResetSent>) -> Option<Self> {
        let socket = at.value.socket.as_ref()?;
        let (waiting, allowed) = (socket.ack_backlog, socket.max_ack_backlog);
        Some(Self { netns: at.netns, waiting, allowed })
    }

    fn is_full(&self) -> bool {
        self.waiting > self.allowed
    }

    fn describe(&self) -> String {
        format!(" ({} waiting, {} allowed)", self.waiting, self.allowed)
    }
}

/// The accept queue that rejected the connection.
fn queue(evidence: &Evidence<'_>) -> Option<Queue> {
    if evidence.listen_overflowed() {
        return Queue::of(evidence.sent()?);
    }
    if let Some(at) = evidence.timed_out() {
        let found = evidence.accept_queue(at.value.socket.flow.dst)?;
        let (waiting, allowed) = (found.1.waiting, found.1.allowed);
        let queue = Queue { netns: found.0, waiting, allowed };
        return (at.value.socket.was_never_answered() && queue.is_full()).then_some(queue);
    }
    let at = evidence.stateless().filter(|at| at.value.end.is_none())?;
    let queue = Queue::of(at)?;
    (evidence.victims_received_nothing() && evidence.lost_nothing() && queue.is_full())
        .then_some(queue)
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let queue = queue(evidence)?;
    let many = queue.describe();
    if evidence.listen_overflowed() {
        let why =
            format!("the listener's accept queue was full{many} and tcp_abort_on_overflow is on");
        return Some(Verdict::new(Confidence::Observed, why).finding(Finding {
            kind: "listen_overflow",
            ts: evidence.sent()?.ts,
            summary: format!("a finished handshake found no place in the accept queue{many}"),
        }));
    }
    let place = evidence.place(queue.netns).describe();
    let (ts, what) = match evidence.timed_out() {
        Some(at) => (at.ts, "its packets were dropped"),
        None => (evidence.stateless()?.ts, "the listener had discarded its handshake"),
    };
    let why = format!("the listener's accept queue {place} was full{many} and {what}");
    Some(
        Verdict::new(Confidence::Correlated, why)
            .finding(Finding {
                kind: "accept_queue_full",
                ts,
                summary: format!(
                    "the accept queue {place} was full{many} when the connection failed"
                ),
            })
            .prove(
                "check whether TcpExtListenOverflows and TcpExtListenDrops (nstat -az) grow in \
                 that namespace",
            ),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let at = evidence.timed_out()?;
    let (_, queue) = evidence.accept_queue(at.value.socket.flow.dst)?;
    let (waiting, allowed) = (queue.waiting, queue.allowed);
    (!queue.is_full())
        .then(|| format!("the accept queue had room ({waiting} waiting, {allowed} allowed)"))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some(queue) = queue(evidence) else {
        return Vec::new();
    };
    let place = evidence.place(queue.netns);
    let now = evidence.host(queue.netns).and_then(|host| host.tcp.somaxconn).map(u64::from);
    let wanted = (u64::from(queue.allowed).max(64) * 4).max(now.unwrap_or(0));
    vec![Fix {
        summary: format!("listen with a backlog of {wanted} and accept faster"),
        current: Some(queue.allowed.to_string()),
        wanted: Some(wanted.to_string()),
        changes: vec![
            Change::listen(place.clone(), wanted),
            Change::Sysctl { place, key: "net.core.somaxconn", from: now, to: wanted },
        ],
        ..LARGER_BACKLOG.fix()
    }]
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let overflowed = |netns: &Netns| netns.tcp.listen_overflows.is_some_and(|count| count > 0);
    let places = context.servers(overflowed);
    let mut fixes: Vec<_> =
        places.iter().filter_map(|netns| remedy::larger_somaxconn(context, netns)).collect();
    fixes.push(LARGER_BACKLOG.fix());
    let patient = |netns: &&Netns| {
        context.value(netns, "net.ipv4.tcp_abort_on_overflow").filter(|now| *now != 0)?;
        Some(Fix {
            summary: format!("{} {}", PATIENT.summary, netns.place.describe()),
            current: context
                .value(netns, "net.ipv4.tcp_abort_on_overflow")
                .map(|now| now.to_string()),
            wanted: Some("0".into()),
            changes: vec![context.sysctl(netns, "net.ipv4.tcp_abort_on_overflow", 0)?],
            ..PATIENT.fix()
        })
    };
    fixes.extend(places.iter().filter_map(patient));
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
