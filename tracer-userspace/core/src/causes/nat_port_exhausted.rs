//! NAT found no free tuple for a new connection: its packets are dropped until the connect times out.

use rsttrace_model::{
    flow::{Flow, Nanos},
    units::human_s,
};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    causes::cause::DropReport,
    event::PacketDrop,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    history::losses::LossEntry,
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "nat_port_exhausted",
    family: Family::Capacity,
    title: "no free source port, or a clashing insert or tuple behind NAT",
    doc: Doc {
        about: "NAT gives each connection its own tuple. When every port of the source address is \
                taken for that destination (64512 at most, fewer with a range), or two packets \
                race for one tuple, the new entry clashes with another when it is inserted \
                (nf_ct_resolve_clash, nf_conntrack_core.c). The packet is then dropped without an \
                answer, and insert_failed counts the drop. After a race the SYN's retry gets \
                through a second later; without a free port the connect ends in ETIMEDOUT.",
        detections: &[Detection::correlated(
            "the SYN clashed and was dropped, and its retry was dropped as well, or the connect \
             timed out",
            &[RequiredSignal::Any("conntrack_clash")],
        )],
        mistaken_for: &[
            (
                "conntrack_table_full",
                "it also drops without an answer, but `drop` grows, not `insert_failed`",
            ),
            (
                "a single drop",
                "connects take 1 s longer; that is a race, which fully-random avoids",
            ),
        ],
        fixes: &[MORE_TUPLES, REUSE],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ceiling: Confidence::Correlated,
    opens_on_drop: Some(DropReport { what: "lost a packet", unless_timed_out: false }),
    ..Cause::BASE
};

const MORE_TUPLES: Remedy = Remedy {
    id: "more_nat_tuples",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "give NAT more source addresses or a wider port range",
    reason: "each address allows one connection per port to one destination; fully-random spreads \
             the ports and avoids races",
    how: "nft: `snat to ADDRESS-ADDRESS:1024-65535 fully-random` or `masquerade to :1024-65535 \
          fully-random`; iptables: --to-ports and --random-fully",
};

const REUSE: Remedy = Remedy {
    id: "reuse_connections",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "keep connections open and reuse them",
    reason: "a closed connection holds its port for nf_conntrack_tcp_timeout_time_wait",
    how: "use a connection pool or HTTP keep-alive towards that destination",
};

const NOT_FIXES: &[(&str, &str)] = &[
    ("net.ipv4.tcp_tw_reuse on the gateway", "the gateway holds no sockets"),
    ("net.netfilter.nf_conntrack_max", "the table has room; the tuple is taken"),
];

/// Two packets that race for one tuple clash once, and the retry a second later gets through
/// (TCP_TIMEOUT_INIT, include/net/tcp.h): only a second clash after this time is a failure. Nanoseconds.
const RETRY_AFTER: Nanos = 500_000_000;

fn clash<'a>(evidence: &Evidence<'a>) -> Option<(&'a LossEntry, &'a PacketDrop, Flow)> {
    evidence.drops().iter().find_map(|(loss, drop)| Some((*loss, *drop, drop.clash()?)))
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if evidence.sent().is_some() || evidence.received().is_some() {
        return None;
    }
    let (loss, drop, translated) = clash(evidence)?;
    let again = loss.ts.saturating_sub(loss.since) >= RETRY_AFTER;
    if !again && evidence.timed_out().is_none() {
        return None;
    }
    let place = evidence.place(loss.netns).describe();
    let nat = translated.src.ip();
    Some(
        Verdict::new(
            Confidence::Correlated,
            format!("NAT found no free port of {nat} to {} {place}", translated.dst),
        )
        .finding(Finding {
            kind: "conntrack_clash",
            ts: loss.ts,
            summary: format!(
                "packet {} was dropped {place}, for the first time {} earlier: the tuple \
                 {translated} that NAT gave it belongs to another connection",
                drop.packet.flow,
                human_s(evidence.age_s(loss.since).abs()),
            ),
        })
        .prove("check that insert_failed in /proc/net/stat/nf_conntrack of that namespace grows"),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = clash(evidence).map_or(evidence.case.netns, |(loss, _, _)| loss.netns);
    let place = evidence.place(netns).describe();
    let more = Fix {
        summary: format!("give NAT more source addresses or a wider port range {place}"),
        ..MORE_TUPLES.fix()
    };
    vec![more, REUSE.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
