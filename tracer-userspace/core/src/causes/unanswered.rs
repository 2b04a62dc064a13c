//! Shared by the timeout causes: the time without an answer, and the connection's packets that were
//! dropped on this host during that time.

use rsttrace_model::{
    errno::{ECONNREFUSED, ETIMEDOUT},
    units::human_s,
};

use super::reject_rule;
use crate::{
    event::{PacketDrop, Socket},
    evidence::{Evidence, seconds},
    fix::{Fix, FixOwner, Remedy, Risk},
    history::losses::LossEntry,
    verdict::Finding,
};

/// The test for cases without a recorded drop on this host.
pub const FIND_THE_DROP: &str = "while the socket retransmits, capture on both sides of each hop, and on \
                                 other hosts of the path watch the counters of DROP rules and policies \
                                 (nft list ruleset, iptables -L -v -n)";

/// The fix where a rule of this host dropped the packets without an answer.
pub const CHANGE_DROP: Remedy = Remedy {
    id: "change_the_drop_rule",
    owner: FixOwner::Firewall,
    risk: Risk::Medium,
    summary: "change the rule or policy that drops the packets",
    reason: "the packets reached this host and were dropped here, not on the path",
    how: "find the rule with nft list ruleset, iptables-save or ip6tables-save in that namespace (look for `drop`, \
          `policy drop` or `-j DROP`; counters show which one runs), and change it",
};

/// The minimum time without an answer of a socket that gave up, seconds. Each wait is twice the one before,
/// from 0.2 s (TCP_RTO_MIN) to 120 s (TCP_RTO_MAX, include/net/tcp.h).
pub fn at_least_s(socket: &Socket) -> f64 {
    let by_probes = f64::from(socket.probes_out) * socket.keepalive.intvl_s;
    let waits = match (socket.retransmits, socket.user_timeout_ms) {
        (0, _) => 0,
        (sent, 0) => i32::from(sent) + 1,
        // The last wait is cut to fit TCP_USER_TIMEOUT.
        (sent, _) => i32::from(sent),
    };
    let by_retries: f64 = (0..waits).map(|wait| wait_s(socket, wait)).sum();
    by_retries.max(by_probes)
}

/// An unreachable host or network makes the next wait short again (RFC 6069; net/ipv4/tcp_ipv4.c,
/// tcp_ld_RTO_revert); a closed port does not.
fn wait_s(socket: &Socket, wait: i32) -> f64 {
    match socket.err_soft {
        0 | ECONNREFUSED => (0.2 * 2f64.powi(wait)).min(120.0),
        _ => 0.2,
    }
}

/// The newest packet of the connection that a rule answered with an ICMP error.
pub fn rejected<'a>(evidence: &Evidence<'a>) -> Option<(&'a LossEntry, &'a PacketDrop)> {
    evidence.drops().iter().copied().find(|(_, drop)| drop.rejected_by().is_some())
}

/// Whether the rule may have existed since the first unanswered packet. A rule that was added later found
/// a connection that was already dead.
pub fn rejected_from_the_start(evidence: &Evidence<'_>, loss: &LossEntry) -> bool {
    evidence.error().is_none_or(|at| {
        // Timers count in jiffies, and from the packet's copy in the retransmission queue.
        const SLACK: f64 = 0.9;
        let socket = &at.value.socket;
        // A connect fails at once on such an error.
        let answered = socket.rcv_nxt == 0 && socket.err != ETIMEDOUT;
        answered || seconds(at.ts.saturating_sub(loss.since)) >= SLACK * at_least_s(socket)
    })
}

/// The packet that was dropped on this host during the time without an answer.
pub fn dropped(evidence: &Evidence<'_>) -> Option<Finding> {
    let first = evidence.drops().first().copied();
    let Some((loss, drop)) = rejected(evidence).or(first) else {
        return dropped_without_answer(evidence);
    };
    let (who, answer) = match drop.rejected_by() {
        Some(stack) => (reject_rule::tool(stack), " and answered it with an ICMP error"),
        None => ("netfilter", ""),
    };
    let ts = loss.seen_by(evidence.case.opened);
    Some(Finding {
        kind: "netfilter_drop",
        ts,
        summary: format!(
            "{who} {} dropped {}{answer}, {} earlier",
            evidence.place(loss.netns).describe(),
            drop.packet.flow,
            human_s(evidence.age_s(ts)),
        ),
    })
}

/// The packets that netfilter dropped without an answer.
pub fn dropped_without_answer(evidence: &Evidence<'_>) -> Option<Finding> {
    let drop = *evidence.rule_drops().first()?;
    let entry = match drop.entry.was_lost() {
        true => ", for which conntrack had no entry,",
        false => "",
    };
    let packets = match drop.count {
        1 => "a packet".to_owned(),
        count => format!("{count} packets"),
    };
    Some(Finding {
        kind: "netfilter_drop",
        ts: drop.last,
        summary: format!(
            "netfilter {} dropped {packets} {}{entry} without an answer, the newest {} earlier",
            evidence.place(drop.netns).describe(),
            drop.flow,
            human_s(evidence.age_s(drop.last)),
        ),
    })
}

/// A rule that answers for the peer, or drops the packets, is the first thing to change, for every timeout cause.
pub fn fixes(evidence: &Evidence<'_>, otherwise: Fix) -> Vec<Fix> {
    let drops = evidence.rule_drops();
    let first = match (rejected(evidence), drops.first()) {
        (Some((loss, _)), _) => reject_rule::change_the_rule(evidence.place(loss.netns)),
        (None, Some(drop)) => {
            let place = evidence.place(drop.netns).describe();
            Fix { summary: format!("{} {place}", CHANGE_DROP.summary), ..CHANGE_DROP.fix() }
        }
        (None, None) => return vec![otherwise],
    };
    vec![first, otherwise]
}
