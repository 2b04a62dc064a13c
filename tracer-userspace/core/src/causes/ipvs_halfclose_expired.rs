//! The IPVS entry expired in any state but ESTABLISHED: half-closed, or never fully opened.

use rsttrace_model::{
    host_state::Netns,
    ipvs::state_name,
    netns::Place,
    settings::IpvsTimer,
    units::{as_seconds, human_s, whole},
};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    ipvs_idle_expired::{ESTABLISHED, finding, had_time, is_natural},
    remedy,
};
use crate::{
    causes::cause::Facts,
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Family, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "ipvs_halfclose_expired",
    family: Family::TimeoutMismatch,
    title: "the IPVS entry expired while half-closed or never fully opened",
    doc: Doc {
        about: "In every state but ESTABLISHED an IPVS entry has a short timeout: CLOSE_WAIT 60 s, \
                SYN_RECV 60 s, LAST_ACK 30 s, FIN_WAIT, SYN_SENT and TIME_WAIT 120 s, CLOSE 10 s \
                (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts). A client that half-closes \
                (shutdown(SHUT_WR)) and then waits for a slow answer outlives its entry. The \
                answer, or the next packet, is then reset by a TCP stack without this connection.",
        detections: &[
            Detection::observed(
                "the entry ended by its own timer in a state other than ESTABLISHED, and a TCP \
                 stack without this connection reset the next packet",
                &[RequiredSignal::Any("ipvs_end"), RequiredSignal::Full("reset_sent")],
            ),
            Detection::correlated(
                "the end of the entry was seen, the sender of the reset was not",
                &[RequiredSignal::Any("ipvs_end"), RequiredSignal::Any("reset_received")],
            ),
            Detection::inferred(
                "the end of the entry was seen, and the server had sent its FIN; whether it had \
                 closed its socket or only shut it for writing is not known",
                &[RequiredSignal::Any("ipvs_end")],
            ),
        ],
        mistaken_for: &[
            (
                "ipvs_idle_expired",
                "the entry was in ESTABLISHED, and its limit is one of the three that ipvsadm sets",
            ),
            ("data_after_close", "the packet still reached the host of the side that had closed"),
            (
                "an orderly close",
                "once both sides have sent FIN, the end of the entry causes no reset",
            ),
        ],
        fixes: &[END_AT_EOF, remedy::KEEPALIVE, NO_HALF_CLOSE, RAISE_FIN_TIMEOUT],
        not_fixes: &[ALL_VALUES, FIRST_VALUE],
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    facts: Facts::Ipvs,
    ..Cause::BASE
};

/// `IP_VS_TCP_S_*` (include/net/ip_vs.h): the server, or the client, has sent its FIN.
const FIN_WAIT: u32 = 4;
/// See [`FIN_WAIT`].
const CLOSE_WAIT: u32 = 7;

const END_AT_EOF: Remedy = Remedy {
    id: "end_at_eof",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the client close the connection when it reads the server's end of file",
    reason: "the server's FIN had arrived earlier; if that was a close and not a half-close, a \
             packet that reached the server would have been reset as well",
    how: "treat a read of 0 bytes as the end of the connection; a pool must check for it before it \
          hands out a connection (validate on borrow)",
};

const NO_HALF_CLOSE: Remedy = Remedy {
    id: "no_half_close",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "do not keep a half-closed connection waiting longer than this limit",
    reason: "IPVS gives a connection that has seen a FIN far less time than an open one",
    how: "mark the end of the request in the protocol instead of calling shutdown(SHUT_WR), or \
          answer sooner",
};

const RAISE_FIN_TIMEOUT: Remedy = Remedy {
    id: "raise_ipvs_fin_timeout",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "raise the IPVS timeout after a FIN, where the server closes first",
    reason: "the server's FIN came first, which leaves the entry in FIN_WAIT; only that state's \
             limit can be set",
    how: "run ipvsadm --set 0 <tcpfin> 0 in the namespace that owns the table (0 keeps a value)",
};

const FIRST_VALUE: (&str, &str) = (
    "the first value of ipvsadm --set",
    "it covers ESTABLISHED; after the server's FIN the second value counts",
);
const ALL_VALUES: (&str, &str) = (
    "ipvsadm --set",
    "its values cover ESTABLISHED and FIN_WAIT only; every other state has a fixed limit \
     (CLOSE_WAIT and SYN_RECV 60 s, net/netfilter/ipvs/ip_vs_proto_tcp.c)",
);

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, end) = evidence.ipvs()?;
    if end.state == ESTABLISHED || !is_natural(end) || !had_time(end, loss.ts) {
        return None;
    }
    Some(
        Verdict::new(
            evidence.lost_entry_confidence(),
            format!(
                "its IPVS entry had expired in {} (limit {})",
                state_name(end.state),
                human_s(end.timeout_s)
            ),
        )
        .finding(finding(evidence, loss.ts, end)),
    )
}

/// Whether the client wrote after the server's FIN. Only the server knows if that FIN was a close or a
/// half-close.
fn server_had_ended(evidence: &Evidence<'_>) -> bool {
    evidence.ipvs().is_some_and(|(_, end)| end.state == FIN_WAIT) && evidence.peer_closed()
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let (_, end) = evidence.ipvs()?;
    let is_open = end.state == ESTABLISHED;
    is_open.then(|| format!("its IPVS entry ended in {}", state_name(end.state)))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some((loss, end)) = evidence.ipvs() else {
        return Vec::new();
    };
    let mut fixes = Vec::new();
    if server_had_ended(evidence) {
        fixes.push(END_AT_EOF.fix());
    }
    // Keepalive probes are sent in these two states as well and re-arm the entry; none is sent before.
    if matches!(end.state, FIN_WAIT | CLOSE_WAIT) {
        fixes.push(remedy::keepalive_below(evidence, end.timeout_s, "the IPVS timer"));
        fixes.push(NO_HALF_CLOSE.fix());
    }
    if end.state == FIN_WAIT {
        let place = evidence.place(loss.netns);
        fixes.push(fin_timeout(place, end.timeout_s, evidence.idle_s()));
    }
    fixes
}

/// [`RAISE_FIN_TIMEOUT`] with its value.
fn fin_timeout(place: Place, now_s: f64, idle_s: Option<f64>) -> Fix {
    let to_s = remedy::raised(now_s, idle_s);
    Fix {
        summary: format!("raise the IPVS timeout after a FIN to {to_s} s {}", place.describe()),
        current: Some(human_s(now_s)),
        wanted: Some(format!("{to_s} s")),
        changes: vec![Change::IpvsTimeout {
            place,
            timer: IpvsTimer::TcpFin,
            from_s: Some(whole(now_s)).and_then(|s| u32::try_from(s).ok()),
            to_s: u32::try_from(to_s).unwrap_or(u32::MAX),
        }],
        ..RAISE_FIN_TIMEOUT.fix()
    }
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let namespaces = context.ipvs_namespaces();
    let limit = |netns: &&Netns| context.value(netns, "ipvs.tcpfin").map(as_seconds);
    let mut fixes = vec![remedy::KEEPALIVE.fix(), NO_HALF_CLOSE.fix()];
    // No other state has a limit that can be set.
    if context.failed.ipvs_state == Some(FIN_WAIT) {
        let raise =
            |netns: &&Netns| Some(fin_timeout(netns.place.clone(), limit(netns)?, context.idle_s));
        fixes.extend(namespaces.iter().filter_map(raise));
    }
    fixes
}

fn not_fixes(evidence: &Evidence<'_>) -> Vec<NotFix> {
    match evidence.ipvs() {
        Some((_, end)) if end.state == FIN_WAIT => remedy::to_not_fixes(&[FIRST_VALUE]),
        _ => remedy::to_not_fixes(&[ALL_VALUES]),
    }
}
