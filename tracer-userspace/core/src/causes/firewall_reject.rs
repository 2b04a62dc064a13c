//! A firewall rule answered with a reset or an ICMP error.

use rsttrace_model::{errno::ECONNREFUSED, tcp_flag, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy, unanswered,
};
use crate::{
    causes::reject_rule::{CHANGE_RULE, change_the_rule, tool},
    event::{DropReason, PacketDrop},
    evidence::Evidence,
    fix::Fix,
    history::losses::LossEntry,
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "firewall_reject",
    family: Family::Policy,
    title: "a rule answered with a reset or an ICMP error",
    doc: Doc {
        about: "A reject rule dropped the packet and answered in the peer's name, with a reset \
                (nftables `reject with tcp reset`, iptables `REJECT --reject-with tcp-reset`) or \
                with an ICMP error (the default of both). The peer never saw the packet. After an \
                ICMP error a connect fails at once with ECONNREFUSED or EHOSTUNREACH; an \
                established connection fails only when its retries have run out. Without kprobes \
                the answer itself is not seen. Only the drop is seen, and the failure of the \
                packet's sender at the same moment.",
        detections: &[
            Detection::observed(
                "nf_send_reset ran for the packet, or nf_send_unreach ran and its sender failed \
                 without a reset",
                &[RequiredSignal::Full("firewall_reset")],
            ),
            Detection::observed(
                "the same with nf_send_reset6 or nf_send_unreach6",
                &[RequiredSignal::Full("firewall_reset6")],
            ),
            Detection::correlated(
                "netfilter dropped the packet, its sender received a reset or was refused within \
                 50 ms, and no TCP stack on this host sent a reset",
                &[
                    RequiredSignal::Any("firewall_reset"),
                    RequiredSignal::Any("reset_received"),
                    RequiredSignal::Full("reset_sent"),
                ],
            ),
            Detection::inferred(
                "the same in a namespace that could not be read; IPVS drops packets too",
                &[
                    RequiredSignal::Any("firewall_reset"),
                    RequiredSignal::Any("reset_received"),
                    RequiredSignal::Full("reset_sent"),
                ],
            ),
        ],
        mistaken_for: &[
            ("connection_refused", "a closed port answers a SYN in the same way, without a rule"),
            ("retransmission_timeout", "a rule that only drops sends no answer"),
            ("peer_state_lost", "a reject rule on another host looks like this from this host"),
        ],
        fixes: &[CHANGE_RULE],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    unseen_origin: Some("netfilter"),
    ..Cause::BASE
};

const NOT_FIXES: &[(&str, &str)] =
    &[("any timeout or keepalive sysctl", "a reject rule does not depend on them")];

/// A rule's answer arrives in the same softirq as the drop of the packet that it answers. Seconds.
const SAME_PACKET_S: f64 = 0.05;

/// The connection's packet that a rule answered with an ICMP error, unless a reset ended the connection
/// first.
fn unreachable<'a>(evidence: &Evidence<'a>) -> Option<(&'a LossEntry, &'a PacketDrop)> {
    let no_reset = evidence.sent().is_none() && evidence.received().is_none();
    if evidence.error().is_none() || !(no_reset || evidence.timed_out().is_some()) {
        return None;
    }
    unanswered::rejected(evidence)
        .filter(|(loss, _)| unanswered::rejected_from_the_start(evidence, loss))
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if let Some(at) = evidence.rejected() {
        // No connection of this host was refused: a scan of a port that a rule protects.
        let syn =
            at.value.trigger.is_some_and(|it| it.has(tcp_flag::SYN) && !it.has(tcp_flag::ACK));
        if syn && evidence.victim().is_none() {
            return None;
        }
        let place = evidence.place(at.netns).describe();
        let tool = tool(&at.value.stack);
        let mut verdict = Verdict::new(
            Confidence::Observed,
            format!("{tool} {place} answered its packet with a reset"),
        )
        .finding(Finding {
            kind: "firewall_reset",
            ts: at.ts,
            summary: format!(
                "{tool} {place} reset {}",
                at.value.trigger.map_or("a packet".into(), |t| t.flow.to_string())
            ),
        });
        if !syn && evidence.may_have_lost_plain_entry() {
            verdict = verdict.prove(
                "check whether a rule before it accepts `ct state established`: conntrack had no entry for the packet, \
                 and when that entry ended is not on record",
            );
        }
        return Some(verdict);
    }
    if let Some((loss, drop)) = unreachable(evidence)
        && let Some(stack) = drop.rejected_by()
    {
        let (tool, place) = (tool(stack), evidence.place(loss.netns).describe());
        let flow = drop.packet.flow;
        let why = format!("{tool} {place} answered its packet with an ICMP error");
        let ts = loss.seen_by(evidence.case.opened);
        return Some(Verdict::new(Confidence::Observed, why).finding(Finding {
            kind: "firewall_unreachable",
            ts,
            summary: format!(
                "{tool} {place} dropped {flow} and answered with an ICMP error, {} earlier",
                human_s(evidence.age_s(ts))
            ),
        }));
    }
    by_its_drop(evidence)
}

/// Without kprobes: netfilter dropped the packet, its sender was reset or refused at once, and no TCP
/// stack on this host sent a reset.
fn by_its_drop(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (ts, flow, answer) = match (evidence.received(), evidence.error()) {
        (Some(at), _) => (at.ts, at.value.socket.flow, "a reset"),
        (None, Some(at)) if at.value.socket.err == ECONNREFUSED => {
            (at.ts, at.value.socket.flow, "an ICMP error")
        }
        _ => return None,
    };
    if evidence.sent().is_some_and(|sent| sent.ts <= ts) {
        return None;
    }
    let (loss, drop) = evidence.drops().iter().find(|(loss, drop)| {
        !drop.is_failure()
            && drop.why != DropReason::NoDestination
            && drop.packet.flow == flow
            && evidence.age_s(loss.ts).abs() < SAME_PACKET_S
    })?;
    let place = evidence.place(loss.netns).describe();
    Some(
        Verdict::new(
            // An IPVS service without a server does the same.
            match evidence.host(loss.netns) {
                Some(_) => Confidence::Correlated,
                None => Confidence::Inferred,
            },
            format!("a firewall rule {place} dropped its packet and answered with {answer}"),
        )
        .finding(Finding {
            kind: "netfilter_drop",
            ts: loss.ts,
            summary: format!(
                "netfilter dropped {} {place}, {} before {answer} arrived",
                drop.packet.flow,
                human_s(evidence.age_s(loss.ts).abs())
            ),
        })
        .prove("trace the packet with nft monitor trace, or check the rule's own counter"),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence
        .rejected()
        .map(|at| at.netns)
        .or_else(|| unreachable(evidence).map(|(loss, _)| loss.netns))
        .unwrap_or(evidence.case.netns);
    vec![change_the_rule(evidence.place(netns))]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
