//! conntrack judged a packet of a translated connection INVALID. NAT does not translate such a packet, so
//! it reached a host that never saw its tuple, and that host answered with a reset.

use rsttrace_model::{conntrack::state_name, host_state::Netns, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    fix_context::FixContext,
    remedy,
};
use crate::{
    causes::cause::Facts,
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::{Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_invalid",
    family: Family::StateLost,
    title: "a packet judged INVALID was not translated back and was answered with a reset",
    doc: Doc {
        about: "conntrack judges a packet INVALID when the packet does not fit its connection's \
                window or state (nf_conntrack_proto_tcp.c). This happens under load with segments \
                that arrive late or out of order. NAT does not translate INVALID packets, so the \
                server's segment reaches the client with the server's own address. The client's \
                host does not know that connection and resets it. The bare reset is not translated \
                either; it fits the server's socket and ends the connection. Kubernetes tracks \
                this as issue 74839.",
        detections: &[
            Detection::observed(
                "conntrack judged the packet INVALID, and within a second a TCP stack without this \
                 connection reset exactly that tuple",
                &[RequiredSignal::Any("conntrack_invalid"), RequiredSignal::Full("reset_sent")],
            ),
            Detection::correlated(
                "the packet was judged INVALID and its sender received a bare reset; the sender of \
                 the reset was not seen",
                &[RequiredSignal::Any("conntrack_invalid"), RequiredSignal::Any("reset_received")],
            ),
        ],
        mistaken_for: &[
            (
                "conntrack_table_full",
                "with a full table the packet has no entry; here the entry exists, but the packet \
                 does not fit it",
            ),
            (
                "conntrack_idle_expired with tcp_loose=0",
                "the packets are INVALID because their entry is gone; the expiry is the cause",
            ),
        ],
        fixes: &[BE_LIBERAL, DROP_INVALID],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    on_host: Some(on_host),
    facts: Facts::CONNTRACK,
    ..Cause::BASE
};

const BE_LIBERAL: Remedy = Remedy {
    id: "conntrack_be_liberal",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "set nf_conntrack_tcp_be_liberal=1 in the namespace that does the NAT",
    reason: "segments outside the window are then translated like any other; the TCP stacks at \
             both ends check the window themselves",
    how: "set net.netfilter.nf_conntrack_tcp_be_liberal=1 in that network namespace; with \
          kube-proxy set conntrack.tcpBeLiberal",
};

const DROP_INVALID: Remedy = Remedy {
    id: "drop_invalid",
    owner: FixOwner::Firewall,
    risk: Risk::Medium,
    summary: "drop INVALID packets in the namespace that does the NAT",
    reason: "a dropped segment is retransmitted, but a reset is final; this breaks asymmetric \
             routes, whose packets are also INVALID",
    how: "nft add rule inet filter forward ct state invalid drop (kube-proxy adds such a rule \
          itself, unless tcp_be_liberal is on)",
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "nf_conntrack_tcp_be_liberal=1 in the pod's namespace",
        "only the setting in the namespace that does the NAT counts",
    ),
    ("net.netfilter.nf_conntrack_max", "the entry existed; the packet did not fit its window"),
];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, invalid) = evidence.invalid()?;
    let place = evidence.place(loss.netns).describe();
    let verdict = Verdict::new(
        evidence.lost_entry_confidence(),
        format!("conntrack judged its packet INVALID {place} and did not translate it"),
    )
    .finding(Finding {
        kind: "conntrack_invalid",
        ts: loss.ts,
        summary: format!(
            "packet {} ({} B) of {} was INVALID for its entry ({}) {place}, {} earlier",
            invalid.packet.flow,
            invalid.packet.payload,
            invalid.original,
            state_name(invalid.state),
            human_s(evidence.age_s(loss.ts).abs()),
        ),
    });
    Some(match evidence.stateless() {
        Some(_) => verdict,
        None => verdict.prove("also run rsttrace on the host that answered the packet"),
    })
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence.invalid().map_or(evidence.case.netns, |(loss, _)| loss.netns);
    let place = evidence.place(netns);
    let liberal = evidence
        .host(netns)
        .and_then(|host| host.conntrack.as_ref())
        .and_then(|table| table.be_liberal);
    let drop =
        Fix { summary: format!("drop INVALID packets {}", place.describe()), ..DROP_INVALID.fix() };
    if liberal == Some(true) {
        return vec![drop];
    }
    let accept = Fix {
        summary: format!("set nf_conntrack_tcp_be_liberal=1 {}", place.describe()),
        current: liberal.map(|_| "0".into()),
        wanted: Some("1".into()),
        changes: vec![Change::Sysctl {
            place,
            key: "net.netfilter.nf_conntrack_tcp_be_liberal",
            from: liberal.map(u64::from),
            to: 1,
        }],
        ..BE_LIBERAL.fix()
    };
    vec![accept, drop]
}

fn on_host(context: &FixContext<'_>) -> Vec<Fix> {
    const KEY: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";
    let accept = |netns: &Netns| {
        Some(Fix {
            summary: format!("set nf_conntrack_tcp_be_liberal=1 {}", netns.place.describe()),
            current: context.value(netns, KEY).map(|now| now.to_string()),
            wanted: Some("1".into()),
            changes: vec![context.sysctl(netns, KEY, 1)?],
            ..BE_LIBERAL.fix()
        })
    };
    let mut fixes: Vec<_> = context.nat_namespaces().into_iter().filter_map(accept).collect();
    fixes.push(DROP_INVALID.fix());
    fixes
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
