//! The IPVS entry was lost to a flush, the drop_entry defence, a restart or a fail-over, not to idleness.

use rsttrace_model::{host_state::Netns, ipvs::state_name, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    ipvs_server_removed::{self, ServerLoss},
    remedy,
};
use crate::{
    causes::{
        cause::{DropReport, Facts},
        ipvs_entry::lost_to,
    },
    event::has,
    evidence::{Evidence, Watched},
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "ipvs_entry_dropped",
    family: Family::StateLost,
    title: "the IPVS entry was lost to a flush, the drop_entry defence, a restart or a fail-over",
    doc: Doc {
        about: "The connection's IPVS entry ended before its timeout. Under memory pressure, or \
                always with net.ipv4.vs.drop_entry=3, the drop_entry defence scans 1/32 of the \
                table once a second. It ends half-open entries, and established ones that have \
                been idle for 60 s and seen at most 8 packets. `ipvsadm -C`, with which a restore \
                or a stop script may begin, deletes every service. With \
                net.ipv4.vs.expire_nodest_conn=1 the entries then end at once. With 0 they stay, \
                but IPVS no longer processes packets and the local TCP stack answers them; once \
                there is another service, their packets are dropped without an answer until the \
                entries expire. Unloading ip_vs, or the end of its network namespace, ends all \
                entries. A director that takes over an address without synchronised entries never \
                had them. Where the next packet is not dropped, the local TCP stack answers it \
                with a reset.",
        detections: &[
            Detection::observed(
                "the entry ended in ip_vs_random_dropentry or in the flush of the table, and the \
                 TCP stack then reset a packet of the connection",
                &[
                    RequiredSignal::Full("ipvs_end"),
                    RequiredSignal::Any("reset_sent"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::observed(
                "the deletion of every service was seen, and the connection's entry then ended, or \
                 was found without a server when the connection timed out or its packets were \
                 dropped here",
                &[
                    RequiredSignal::Full("ipvs_server_removed"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::correlated(
                "the deletion of every service was seen, and the TCP stack then reset a packet of \
                 the connection; without services IPVS does not process packets",
                &[
                    RequiredSignal::Any("ipvs_server_removed"),
                    RequiredSignal::Any("reset_sent"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::correlated(
                "the entry ended in one of these ways, and a bare reset or a timeout followed",
                &[RequiredSignal::Full("ipvs_end"), RequiredSignal::Any("kernel_symbols")],
            ),
            Detection::inferred(
                "the TCP stack at an IPVS service's address reset a mid-stream packet; no entry of \
                 the connection ended while tracing, and the connection had not been idle for the \
                 limit",
                &[RequiredSignal::Full("reset_sent"), RequiredSignal::Any("ipvs_end")],
            ),
        ],
        mistaken_for: &[
            ("ipvs_idle_expired", "the entry had been idle for its full limit"),
            (
                "ipvs_server_removed",
                "one server or one service was deleted, and its connections fail",
            ),
            (
                "socket_gone",
                "the server lost the connection; here the server still has it and only the \
                 director does not",
            ),
        ],
        fixes: &[NO_DEFENCE, KEEP_SERVICES, SYNC],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    opens_on_drop: Some(DropReport { what: "lost a packet", unless_timed_out: true }),
    facts: Facts::Ipvs,
    ..Cause::BASE
};

const NO_DEFENCE: Remedy = Remedy {
    id: "switch_drop_entry_off",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "turn off the drop_entry defence, or add memory to the node",
    reason: "the defence ends connections to save memory; an entry costs a few hundred bytes",
    how: "set net.ipv4.vs.drop_entry=0 in the namespace that owns the table; with 1 the defence \
          starts below net.ipv4.vs.amemthresh free pages",
};

const KEEP_SERVICES: Remedy = Remedy {
    id: "keep_the_services",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "do not clear the IPVS table while connections go through it",
    reason: "without its service an entry ends, or its packets are dropped",
    how: "do not run ipvsadm -C (not even before ipvsadm-restore), or a stop script or kube-proxy \
          --cleanup that does the same; add and edit services one by one, and before deleting a \
          server set its weight to 0 and wait until ActiveConn is 0",
};

const SYNC: Remedy = Remedy {
    id: "synchronise_entries",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "keep IPVS entries across restarts and fail-overs",
    reason: "a director without the entry answers every packet of the connection with a reset",
    how: "run ipvsadm --start-daemon master on the active director and ipvsadm --start-daemon \
          backup on the others, with net.ipv4.vs.sync_refresh_period below half of the shortest \
          timeout, and drain before a restart; or let the next director choose the \
          same server (scheduler mh or sh) with net.ipv4.vs.sloppy_tcp=1",
};

const NOT_FIXES: &[(&str, &str)] = &[
    ("ipvsadm --set with longer timeouts", "the entry did not time out"),
    (
        "net.ipv4.tcp_keepalive_*",
        "probes re-arm an entry's timer, but this entry did not end by its timer",
    ),
];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if let Some(loss) = cleared(evidence) {
        return Some(loss.verdict(evidence));
    }
    if !evidence.looks_like_lost_state() {
        return None;
    }
    seen(evidence).or_else(|| inferred(evidence))
}

/// The loss of its service together with all others.
fn cleared<'a>(evidence: &Evidence<'a>) -> Option<ServerLoss<'a>> {
    ipvs_server_removed::lost(evidence).filter(ServerLoss::with_all)
}

fn seen(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (loss, end) = evidence.ipvs()?;
    let how = lost_to(end)?;
    let before = human_s(evidence.age_s(loss.ts));
    // How the other director used its entry is not known here.
    let most = if end.is_unused_copy() { Confidence::Correlated } else { Confidence::Observed };
    Some(
        Verdict::new(
            evidence.lost_entry_confidence().min(most),
            format!("its IPVS entry had been lost ({how} {before} earlier)"),
        )
        .finding(Finding {
            kind: "ipvs_entry_lost",
            ts: loss.ts,
            summary: format!(
                "IPVS entry {} (to {}, {}) ended: {how}, {before} earlier",
                end.virtual_flow,
                end.real_flow.dst,
                state_name(end.state),
            ),
        }),
    )
}

/// This director never had the entry, or lost the entry before tracing began.
fn inferred(evidence: &Evidence<'_>) -> Option<Verdict> {
    let balanced = evidence.balanced().filter(|balanced| balanced.has_entry == Some(false))?;
    let at = evidence.stateless().filter(|at| at.netns == balanced.netns)?;
    // A server on the director itself ends its own connections; an unused flow is not a connection.
    if at.value.socket.is_some() || at.value.end.is_some() || !evidence.was_used() {
        return None;
    }
    let vip = balanced.virtual_flow.dst;
    let service = evidence.ipvs_service(at.netns, vip)?;
    if service.destinations.iter().any(|d| d.ip == vip.ip() || d.ip.is_loopback()) {
        return None;
    }
    let limit_s = f64::from(evidence.host(at.netns)?.ipvs.as_ref()?.timeout_tcp_s?);
    let would_be_seen = |age_s: f64| evidence.would_know(Watched::IpvsEnd, at.netns, age_s);
    let idle = match evidence.idle_s() {
        // Before tracing began, its server may have been removed or a shorter limit may have run out.
        Some(idle_s) if idle_s < limit_s && would_be_seen(idle_s) => {
            format!("idle for only {}", human_s(idle_s))
        }
        None if would_be_seen(limit_s) => "traced for longer than the limit".to_owned(),
        _ => return None,
    };
    let place = evidence.place(at.netns).describe();
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!(
                "the IPVS director {place} had no entry for it, and none ended here, so the \
                 director took the address over or was restarted"
            ),
        )
        .finding(Finding {
            kind: "ipvs_no_entry",
            ts: at.ts,
            summary: format!(
                "{vip} is an IPVS service {place}, but the local TCP stack answered a mid-stream \
                 packet; no entry of the connection ended while tracing, {idle}, limit {}",
                human_s(limit_s)
            ),
        })
        .prove(
            "check whether the address moved to this director, or IPVS was restarted here, after \
             the connection was made; compare ipvsadm -Lnc on both directors",
        ),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    if let Some(at) = cleared(evidence).and_then(|loss| loss.removal) {
        return vec![Fix {
            summary: format!("keep {} from clearing the IPVS table", at.value.task.comm),
            ..KEEP_SERVICES.fix()
        }];
    }
    let defence = evidence.ipvs().filter(|(_, end)| has(&end.stack, "ip_vs_random_dropentry"));
    let Some((loss, _)) = defence else {
        return vec![SYNC.fix()];
    };
    let from = evidence.host(loss.netns).and_then(|host| host.ipvs.as_ref()?.drop_entry);
    vec![Fix {
        current: from.map(|from| from.to_string()),
        wanted: Some("0".into()),
        changes: vec![Change::Sysctl {
            place: evidence.place(loss.netns),
            key: "net.ipv4.vs.drop_entry",
            from: from.map(u64::from),
            to: 0,
        }],
        ..NO_DEFENCE.fix()
    }]
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    let off = |netns: &Netns| {
        let from = context.value(netns, "net.ipv4.vs.drop_entry")?;
        Some(Fix {
            summary: format!("turn off the drop_entry defence {}", netns.place.describe()),
            current: Some(from.to_string()),
            wanted: Some("0".into()),
            changes: vec![context.sysctl(netns, "net.ipv4.vs.drop_entry", 0)?],
            ..NO_DEFENCE.fix()
        })
    };
    let mut fixes: Vec<_> = context.ipvs_namespaces().into_iter().filter_map(off).collect();
    fixes.push(SYNC.fix());
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
