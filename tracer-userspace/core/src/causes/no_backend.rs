//! The IPVS service had no usable real server when the connection was made.
//!
//! IPVS drops the SYN and answers with an ICMP port unreachable. Its sender sees a refused connect, or no
//! answer at all, because those answers are limited to one a second for each sender.

use rsttrace_model::{ipvs::IpvsService, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    case::Stamped,
    causes::cause::DropReport,
    event::{DropReason, PacketDrop},
    evidence::{Evidence, Watched},
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "no_backend",
    family: Family::StateLost,
    title: "the service had no usable server when the connection was made",
    doc: Doc {
        about: "A SYN arrived at an IPVS service without a usable real server: the service has \
                none, all have weight 0, or all are over their upper threshold. IPVS drops the SYN \
                and answers with an ICMP port unreachable, so the connect fails with ECONNREFUSED. \
                Those answers are limited to about one a second for each client \
                (net.ipv4.icmp_ratelimit), and the other connects time out. In nftables and \
                iptables mode kube-proxy has a reject rule instead, for a Service without \
                endpoints and, in nftables mode, for a port that a cluster IP does not serve; in \
                ipvs mode a rule (KUBE-IPVS-FILTER) rejects such a port.",
        detections: &[
            Detection::observed(
                "IPVS rejected the SYN in ip_vs_leave",
                &[RequiredSignal::Full("ipvs_no_server")],
            ),
            Detection::observed(
                "a rule rejected the SYN with an ICMP error, and all rules of that namespace that can reject a packet to \
                 its destination are kube-proxy's",
                &[RequiredSignal::Full("firewall_reset"), RequiredSignal::Any("namespaces")],
            ),
            Detection::correlated(
                "netfilter dropped the SYN to a service that lists no usable server",
                &[RequiredSignal::Any("conntrack_full")],
            ),
        ],
        mistaken_for: &[
            ("connection_refused", "a TCP stack without a listener sends a reset; IPVS sends none"),
            (
                "ipvs_server_removed",
                "a removal breaks existing connections; here the connection was never made, often \
                 for the same reason",
            ),
        ],
        fixes: &[SERVER, ENDPOINTS],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    opens_on_drop: Some(DropReport { what: "was refused", unless_timed_out: false }),
    ..Cause::BASE
};

const SERVER: Remedy = Remedy {
    id: "give_it_a_server",
    owner: FixOwner::KubeProxy,
    risk: Risk::Low,
    summary: "give the IPVS service a real server that takes connections",
    reason: "IPVS refuses every connection to a service without one",
    how: "in Kubernetes find out why no pod of the Service is ready (kubectl get endpointslices \
          -A); otherwise check ipvsadm -Ln and add a server (-a), or give one a weight above 0 (-e)",
};

const ENDPOINTS: Remedy = Remedy {
    id: "give_the_service_endpoints",
    owner: FixOwner::KubeProxy,
    risk: Risk::Low,
    summary: "give the Service a ready endpoint, or connect to a port that it serves",
    reason: "kube-proxy rejects what it has no endpoint for, and rewrites its rules when it starts",
    how: "kubectl get services,endpointslices -A shows the ports of the Service and which pods are ready; the rule itself \
          goes as soon as an endpoint is ready",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "a listener on this node",
        "IPVS takes the packet before the local TCP stack looks for a listener",
    ),
    ("any keepalive or idle timeout", "the connection was never made"),
];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    by_ipvs(evidence).or_else(|| by_kube_proxy(evidence))
}

/// A reject rule of kube-proxy stands for the missing endpoint.
fn by_kube_proxy(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (at, rule) = evidence.rejected_by_kube_proxy()?;
    let dst = at.value.packet.flow.dst;
    let place = evidence.place(at.netns).describe();
    let reason = match &rule.comment {
        Some(comment) => comment.clone(),
        None => "the Service has no endpoint, or does not serve this port".into(),
    };
    let why = format!("kube-proxy rejects connections to {dst} {place} ({reason})");
    Some(Verdict::new(Confidence::Observed, why).finding(Finding {
        kind: "kube_proxy_reject",
        ts: at.ts,
        summary: format!(
            "kube-proxy's rule {} {place} rejected SYN {} with an ICMP error, {} earlier",
            rule.at,
            at.value.packet.flow,
            human_s(evidence.age_s(at.ts).abs()),
        ),
    }))
}

fn by_ipvs(evidence: &Evidence<'_>) -> Option<Verdict> {
    if evidence.sent().is_some() || evidence.received().is_some() {
        return None;
    }
    let at = refused(evidence)?;
    let drop = &at.value;
    let service = drop.packet.flow.dst;
    let missing = missing_server(evidence.ipvs_service(at.netns, service));
    let place = evidence.place(at.netns).describe();
    let confidence = if drop.why == DropReason::NoServer {
        Confidence::Observed
    } else {
        Confidence::Correlated
    };
    Some(
        Verdict::new(confidence, format!("the IPVS service {service} {place} had {missing}"))
            .finding(Finding {
                kind: "ipvs_no_server",
                ts: at.ts,
                summary: format!(
                    "SYN {} was dropped {place}: its IPVS service had {missing}, {} earlier",
                    drop.packet.flow,
                    human_s(evidence.age_s(at.ts).abs()),
                ),
            }),
    )
}

/// The SYN that IPVS refused. Without kprobes: one that netfilter dropped on its way to a service that
/// has no usable server.
fn refused<'a>(evidence: &Evidence<'a>) -> Option<&'a Stamped<PacketDrop>> {
    evidence.case.drops.iter().find(|at| {
        let drop = &at.value;
        let unusable = || {
            let service = evidence.ipvs_service(at.netns, drop.packet.flow.dst);
            service.is_some_and(|service| service.destinations.iter().all(|d| d.weight == 0))
        };
        drop.packet.is_syn()
            && match drop.why {
                DropReason::NoServer => true,
                DropReason::TableFull | DropReason::Rejected { .. } => false,
                DropReason::NoDestination
                | DropReason::Clash { .. }
                | DropReason::Netfilter { .. } => unusable(),
            }
    })
}

/// Which usable server the service lacked, according to its list.
fn missing_server(service: Option<&IpvsService>) -> String {
    let Some(service) = service else {
        return "no usable real server".into();
    };
    match (service.destinations.len(), service.destinations.iter().all(|d| d.weight == 0)) {
        (0, _) => "no real server".into(),
        (1, true) => "only one real server, with weight 0".into(),
        (n, true) => format!("only {n} real servers, all with weight 0"),
        // Over their upper threshold, or added a moment later.
        (n, false) => format!("no usable real server ({n} in its list)"),
    }
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    if !evidence.is_handshake() || refused(evidence).is_some() {
        return None;
    }
    let time = evidence.absence(Watched::NoServer)?;
    Some(format!("no SYN of this connection reached an IPVS service without a server {time}"))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some(at) = refused(evidence) else {
        let rejected = evidence.rejected_by_kube_proxy().is_some();
        return rejected.then(|| ENDPOINTS.fix()).into_iter().collect();
    };
    let service = at.value.packet.flow.dst;
    let current = evidence.ipvs_service(at.netns, service).map(|found| {
        let usable = found.destinations.iter().filter(|d| d.weight > 0).count();
        format!("{usable} of {} with weight above 0", found.destinations.len())
    });
    vec![Fix {
        summary: format!("give the IPVS service {service} a real server that takes connections"),
        current,
        wanted: Some("at least 1".into()),
        ..SERVER.fix()
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
