//! Unanswered data, SYNs or window probes ran out of retries.

use rsttrace_model::{errno::errno_name, host_state::Netns, tcp_state};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    reject_rule::CHANGE_RULE,
    remedy, unanswered,
};
use crate::{
    event::Socket,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "retransmission_timeout",
    family: Family::Keepalive,
    title: "unanswered data, SYNs or window probes ran out of retries",
    doc: Doc {
        about: "Data, a SYN or a window probe was retransmitted and never acknowledged. Data has \
                tcp_retries2 (15) retries, about 924 s at the smallest interval; a SYN has \
                tcp_syn_retries (6), about 130 s (Documentation/networking/ip-sysctl). The \
                application gets ETIMEDOUT, or the ICMP error that arrived meanwhile, and no reset \
                is sent to the peer. The cause is on the path: a packet dropped without an answer, \
                a lost route, an MTU black hole or a dead host. The evidence lists what was seen \
                here, such as packets that a rule of this host rejected or dropped, or a full IPVS \
                table (net.ipv4.vs.conn_max).",
        detections: &[
            Detection::observed(
                "the socket failed with ETIMEDOUT",
                &[RequiredSignal::Any("socket_error")],
            ),
            Detection::observed(
                "the socket failed in the retransmission or the probe timer with the errno of an \
                 earlier ICMP error",
                &[RequiredSignal::Any("socket_error"), RequiredSignal::Any("kernel_symbols")],
            ),
            Detection::observed(
                "its IPVS server was removed only after the server had stopped answering",
                &[RequiredSignal::Any("socket_error"), RequiredSignal::Any("ipvs_server_removed")],
            ),
        ],
        mistaken_for: &[
            (
                "ipvs_idle_expired",
                "the connection is idle for 900 s before the first failure, and ends with a reset",
            ),
            ("keepalive_exhausted", "no data was outstanding; keepalive probes went unanswered"),
            (
                "conntrack_table_full",
                "a full table on this host dropped the packets; that is the cause, and takes \
                 precedence",
            ),
        ],
        fixes: &[
            remedy::RESTORE_THE_PATH,
            unanswered::CHANGE_DROP,
            CHANGE_RULE,
            RAISE_CONN_MAX,
            SOONER,
            LONGER,
        ],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    ..Cause::BASE
};

/// For a tcp_retries2 below the value of RFC 1122.
const LONGER: Remedy = Remedy {
    id: "retry_longer",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "retry for at least the 100 s of RFC 1122",
    reason: "with fewer retries an outage of some seconds breaks a connection",
    how: "set net.ipv4.tcp_retries2 to 8 or more (the default is 15) in the application's network \
          namespace",
};

const SOONER: Remedy = Remedy {
    id: "give_up_sooner",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "give up on unanswered data sooner",
    reason: "the application can connect again after about 100 s instead of 15 minutes; \
             connections that would have survived an outage of the path then break",
    how: "set net.ipv4.tcp_retries2=8 in the application's network namespace (RFC 1122 asks for at \
          least 100 s), or set TCP_USER_TIMEOUT on the socket",
};

/// The minimum that Documentation/networking/ip-sysctl.rst recommends, for RFC 1122's 100 s.
const RETRIES: u64 = 8;

const RAISE_CONN_MAX: Remedy = Remedy {
    id: "raise_ipvs_conn_max",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "raise the number of connections that IPVS may hold",
    reason: "at net.ipv4.vs.conn_max (7.2 on) the SYN of every further connection is dropped \
             without an answer",
    how: "raise net.ipv4.vs.conn_max in the namespace that owns the table (/proc/net/ip_vs_status \
          shows the number of connections); shorter timeouts after a FIN (ipvsadm --set 0 <tcpfin> \
          0) free entries sooner",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "net.ipv4.tcp_keepalive_*",
    "keepalive does not probe while data is outstanding (net/ipv4/tcp_timer.c)",
)];

/// The kind of packets that went unanswered.
fn unanswered(socket: &Socket, connecting: bool) -> &'static str {
    if connecting {
        "SYNs"
    } else if socket.probes_out > 0 && socket.retransmits == 0 {
        "zero-window probes"
    } else {
        "data"
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = evidence.timed_out()?;
    let socket = &at.value.socket;
    // Without kernel symbols an unanswered probe may have been a keepalive probe.
    if at.value.stack.is_empty() && socket.retransmits == 0 {
        return None;
    }
    // The state is CLOSE by now; a socket that never received anything was still connecting.
    let connecting = socket.state == tcp_state::SYN_SENT || socket.rcv_nxt == 0;
    let what = unanswered(socket, connecting);
    let soft = errno_name(socket.err_soft)
        .map(|name| format!("; an ICMP error reported {name}"))
        .unwrap_or_default();
    let mut verdict = Verdict::new(
        Confidence::Observed,
        format!("{what} went unanswered until the retries ran out{soft}"),
    )
    .finding(Finding {
        kind: "retransmission_gave_up",
        ts: at.ts,
        summary: format!(
            "{what}: {} retransmissions, {} probes, tcp_retries2 {}{soft}",
            socket.retransmits, socket.probes_out, socket.retries2
        ),
    });
    if let Some((netns, conns, max)) = full_balancer(evidence) {
        verdict.why += &format!("; IPVS accepts no new connections ({conns} of {max})");
        verdict = verdict.finding(Finding {
            kind: "ipvs_conn_max",
            ts: at.ts,
            summary: format!(
                "IPVS {} holds {conns} connections of at most {max} (net.ipv4.vs.conn_max), and \
                 drops the SYNs of further connections without an answer",
                evidence.place(netns).describe(),
            ),
        });
    }
    let dropped = unanswered::dropped(evidence);
    if dropped.is_none() {
        verdict = verdict.prove(unanswered::FIND_THE_DROP);
    }
    verdict.findings.extend(dropped);
    Some(verdict)
}

/// The namespace whose IPVS table was full when the connect failed, its connections and their limit.
fn full_balancer(evidence: &Evidence<'_>) -> Option<(u32, u32, u32)> {
    let at = evidence.timed_out()?;
    let (socket, netns) = (&at.value.socket, evidence.balancer_of(at.value.socket.flow.dst)?);
    let ipvs = evidence.host(netns)?.ipvs.as_ref()?;
    let (conns, max) = (ipvs.conns?, ipvs.conn_max?);
    (socket.rcv_nxt == 0 && conns >= max).then_some((netns, conns, max))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let mut fixes = unanswered::fixes(evidence, remedy::RESTORE_THE_PATH.fix());
    if let Some((netns, conns, max)) = full_balancer(evidence) {
        let raise = Fix {
            summary: format!(
                "raise net.ipv4.vs.conn_max {}, or find out which clients hold its connections",
                evidence.place(netns).describe()
            ),
            current: Some(max.to_string()),
            wanted: Some(format!("more than {conns}")),
            ..RAISE_CONN_MAX.fix()
        };
        fixes.insert(0, raise);
    }
    fixes
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    const KEY: &str = "net.ipv4.tcp_retries2";
    let sooner = |netns: &Netns| {
        let now = context.value(netns, KEY).filter(|now| *now >= RETRIES)?;
        Some(Fix {
            summary: format!("give up on unanswered data sooner {}", netns.place.describe()),
            current: Some(now.to_string()),
            wanted: Some(RETRIES.to_string()),
            changes: vec![context.sysctl(netns, KEY, RETRIES)?],
            ..SOONER.fix()
        })
    };
    let mut fixes = vec![remedy::RESTORE_THE_PATH.fix()];
    fixes.extend(context.victim_namespaces().into_iter().filter_map(sooner));
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
