//! The kernel reset a closed connection because of too many orphans or exhausted TCP memory.

use rsttrace_model::netns::{NetnsReach, Place};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    case::Stamped,
    event::{ResetSent, has},
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "tcp_resource_limit",
    family: Family::Capacity,
    title: "too many orphans, or TCP memory exhausted, so the kernel reset a closed connection",
    doc: Doc {
        about: "A connection that its application has closed, and whose end the peer has not yet \
                acknowledged, is an orphan. Above net.ipv4.tcp_max_orphans, or when all sockets \
                together hold more than the last value of net.ipv4.tcp_mem, the kernel resets \
                orphans instead of delivering their remaining data (net/ipv4/tcp_timer.c, \
                tcp_out_of_resources, and net/ipv4/tcp.c, __tcp_close).",
        detections: &[Detection::observed(
            "the kernel reset an orphan to free its memory, as the reset's reason or stack shows",
            &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            ("close_unread_data", "the application left data unread; memory was not short"),
            ("linger_zero", "the application requested the reset"),
        ],
        fixes: &[RAISE_LIMITS, FEWER_ORPHANS],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    ..Cause::BASE
};

const RAISE_LIMITS: Remedy = Remedy {
    id: "raise_tcp_limits",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "raise net.ipv4.tcp_max_orphans or net.ipv4.tcp_mem on the host, whichever was reached",
    reason: "above either limit the kernel resets closed sockets instead of delivering their \
             remaining data",
    how: "raise the limit that `dmesg` reports (`too many orphaned sockets` or `out of memory -- \
          consider tuning tcp_mem`); /proc/net/sockstat shows `orphan` and `mem` (in pages)",
};

const FEWER_ORPHANS: Remedy = Remedy {
    id: "fewer_orphans",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "read the peer's end of file before closing the socket",
    reason: "a socket closed while its peer does not answer stays an orphan for minutes",
    how: "find connections closed without an acknowledgement with `ss -tan state fin-wait-1 state \
          last-ack state closing`; net.ipv4.tcp_orphan_retries shortens their life",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "tcp_max_orphans or tcp_mem inside a pod",
        "both exist once per machine, in the initial namespace",
    ),
    ("net.ipv4.tcp_fin_timeout", "it controls only FIN_WAIT2"),
];

/// The reset that frees an orphan's memory. Kernels before 6.10 give no reason, so the stack is used.
fn gave_up<'a>(evidence: &Evidence<'a>) -> Option<&'a Stamped<ResetSent>> {
    evidence.active().filter(|at| match at.value.reason.as_deref() {
        Some(reason) => reason == "TCP_ABORT_ON_MEMORY",
        None => has(&at.value.stack, "tcp_out_of_resources") || at_close(&at.value),
    })
}

/// `__tcp_close` checks the limits itself. Its other resets are those of unread data, of SO_LINGER 0
/// (below tcp_disconnect) and of a negative TCP_LINGER2 (net/ipv4/tcp.c).
fn at_close(sent: &ResetSent) -> bool {
    has(&sent.stack, "__tcp_close")
        && !has(&sent.stack, "tcp_disconnect")
        && sent.socket.as_ref().is_some_and(|s| s.dead && s.unread == 0 && !s.linger2_negative)
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = gave_up(evidence)?;
    Some(
        Verdict::new(
            Confidence::Observed,
            "there were too many orphaned sockets, or TCP memory was exhausted, and the kernel \
             reset this one to free its memory",
        )
        .finding(Finding {
            kind: "out_of_resources",
            ts: at.ts,
            summary: "a socket that its application had closed was reset to free its memory".into(),
        }),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let reason = evidence.active()?.value.reason.as_deref()?;
    (reason != "TCP_ABORT_ON_MEMORY").then(|| format!("the kernel's reason was {reason}"))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    // Both limits are machine-wide; other namespaces do not show them.
    let host = Place { netns: evidence.session.initial_netns, reach: NetnsReach::Initial };
    let now = evidence.host(host.netns).and_then(|state| state.tcp.max_orphans).map(u64::from);
    let mut limits = RAISE_LIMITS.fix();
    if let Some(now) = now {
        limits.current = Some(format!("tcp_max_orphans {now}"));
        limits.changes.push(Change::Sysctl {
            place: host,
            key: "net.ipv4.tcp_max_orphans",
            from: Some(now),
            to: (now * 2).max(ENOUGH),
        });
    }
    vec![limits, FEWER_ORPHANS.fix()]
}

/// Orphans; half a GiB if each holds the 64 KiB that Documentation/networking/ip-sysctl.rst assumes.
const ENOUGH: u64 = 8192;

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    const KEY: &str = "net.ipv4.tcp_max_orphans";
    let now = context.view.machine.values.number(KEY);
    let change = context
        .host()
        .zip(now)
        .and_then(|(host, now)| context.sysctl(host, KEY, (now * 2).max(ENOUGH)));
    let mut limits = RAISE_LIMITS.fix();
    if let (Some(now), Some(change)) = (now, change) {
        limits.current = Some(format!("tcp_max_orphans {now}"));
        limits.changes.push(change);
    }
    vec![limits, FEWER_ORPHANS.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
