//! A device on the path dropped an idle flow. This host cannot observe that; it can measure at which idle
//! ages connections to one service break, and at which they do not.

use rsttrace_model::{tcp_flag, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    foreign_reset::{from_elsewhere, idle_before},
    remedy,
};
use crate::{
    evidence::Evidence,
    fix::Fix,
    history::idle_periods::{Ages, Bracket, Break},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "middlebox_idle_timeout",
    family: Family::TimeoutMismatch,
    title: "a device on the path dropped an idle flow (load balancer, NAT gateway, firewall)",
    doc: Doc {
        about: "Load balancers, NAT gateways and firewalls keep a table of flows and remove those \
                that are idle. The device, or the host behind it, answers the next packet with a \
                bare RST, or does not answer at all (then the connection ends as \
                retransmission_timeout). No packet reports the removal, so rsttrace measures it: \
                for each service it keeps the idle ages at which connections broke and those that \
                connections survived (sampled from the kernel's list of sockets once a connection \
                has broken). Baseline limits: 240 s Azure load balancer, 350 s AWS NLB, NAT \
                gateway and Nitro v6 conntrack, 600 s Google Cloud firewall, 900 s IPVS, 1200 s \
                Google Cloud NAT, 3600 s many firewalls, 4000 s the longest AWS classic load \
                balancer.",
        detections: &[Detection::inferred(
            "two or more independent breaks by a reset from another host (without ACK, or unasked \
             after 30 s or more), all after a longer idle time than any connection to that service \
             survived",
            &[RequiredSignal::Full("reset_received"), RequiredSignal::Full("reset_sent")],
        )],
        mistaken_for: &[
            (
                "a server's restart",
                "a restart breaks all idle connections at once, whatever their idle time",
            ),
            (
                "a server's idle policy",
                "the server closes with FIN; one that aborts at a fixed idle time looks the same from here",
            ),
            (
                "IPVS or conntrack on this host",
                "the end of their entry is seen (ipvs_idle_expired, conntrack_idle_expired)",
            ),
        ],
        fixes: &[remedy::KEEPALIVE, remedy::POOL],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out,
    fixes,
    not_fixes,
    ceiling: Confidence::Inferred,
    ..Cause::BASE
};

const NOT_FIXES: &[(&str, &str)] = &[
    (
        "timeouts of conntrack or IPVS on this host",
        "another device removed the flow; no table of this host had it",
    ),
    ("net.ipv4.tcp_retries2", "the device answers at once, so nothing is retried"),
];

/// Known idle limits, seconds, ascending (the vendors' documentation, as of 2026).
const KNOWN: &[(f64, &str)] = &[
    (60.0, "AWS application and classic load balancers"),
    (240.0, "Azure load balancer"),
    (350.0, "AWS NLB, NAT gateway, Nitro v6 conntrack"),
    (600.0, "Google Cloud firewall"),
    (900.0, "IPVS on another node"),
    (1200.0, "Google Cloud NAT"),
    (1800.0, "AKS outbound rules"),
    (3600.0, "many firewalls"),
    (4000.0, "AWS classic load balancer, its maximum"),
];

/// A device's timer may be late by this factor and still match (the kernel's timers are late by up to 1/8).
const LATE: f64 = 1.13;

/// The shortest idle time that counts, seconds.
const IDLE_S: f64 = 1.0;

/// A shorter idle time than this is not the limit of a device that sends a reset with ACK: applications abort
/// connections at any age. Seconds.
const SHORTEST_LIMIT_S: f64 = 30.0;

/// This case as a sample: a connection that was used, became idle, and was reset from another host, which either
/// answered without state for it, or sent a reset unasked when its timer ran out.
pub fn sample(evidence: &Evidence<'_>) -> Option<Break> {
    let (_, packet) = from_elsewhere(evidence)?;
    let unexplained = evidence.lost_nothing() && evidence.drops().is_empty();
    let idle_s = evidence.idle_s().filter(|idle_s| *idle_s >= IDLE_S)?;
    let socket = &evidence.received()?.value.socket;
    let unasked = idle_s >= SHORTEST_LIMIT_S && idle_before(socket, evidence.case.opened).is_some();
    let by_device = !packet.has(tcp_flag::ACK) || unasked;
    (unexplained && by_device && evidence.was_used()).then_some(Break {
        at: evidence.case.opened,
        last_received: evidence.last_received()?,
        idle_s,
    })
}

fn bracket(evidence: &Evidence<'_>) -> Option<Bracket> {
    sample(evidence)?;
    evidence.idle_periods().and_then(Ages::bracket)
}

fn candidates(bracket: Bracket) -> Vec<&'static str> {
    let fits = |limit: f64| limit > bracket.survived_s && limit <= bracket.broke_s;
    let is_late = |limit: f64| limit * LATE >= bracket.broke_s;
    KNOWN
        .iter()
        .filter(|(limit, _)| fits(*limit) && is_late(*limit))
        .map(|(_, device)| *device)
        .collect()
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let bracket = bracket(evidence)?;
    let service = evidence.client_view()?.dst;
    let (survived, broke) = (human_s(bracket.survived_s), human_s(bracket.broke_s));
    let candidates = candidates(bracket);
    let known = match candidates.as_slice() {
        [] => String::new(),
        devices => format!(" (known devices with such a limit: {})", devices.join("; ")),
    };
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!("a device on the path to {service} drops flows idle for {broke}{known}"),
        )
        .finding(Finding {
            kind: "idle_bracket",
            ts: evidence.case.opened,
            summary: format!(
                "connections to {service} were never reset below {survived} idle, and always at \
                 {broke} or more ({} independent breaks)",
                bracket.breaks
            ),
        })
        .prove(format!(
            "leave one connection to {service} idle for {} and another for {}; if only the second \
             breaks, this is confirmed",
            human_s(bracket.survived_s * 0.9),
            human_s(bracket.broke_s * LATE),
        )),
    )
}

fn rule_out(evidence: &Evidence<'_>) -> Option<String> {
    let broke_s = sample(evidence)?.idle_s;
    let survived_s = evidence.idle_periods()?.longest_survived_s()?;
    (survived_s >= broke_s)
        .then(|| format!("a connection to the same service survived {} idle", human_s(survived_s)))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some(bracket) = bracket(evidence) else {
        return Vec::new();
    };
    // Based on the idle time known to survive, not on the one known to break.
    vec![
        remedy::keepalive_below(evidence, bracket.survived_s, "the device's timer"),
        remedy::pool_below(bracket.survived_s),
    ]
}

fn not_fixes(evidence: &Evidence<'_>) -> Vec<NotFix> {
    let mut list =
        remedy::article_not_fixes(evidence, bracket(evidence).map_or(350.0, |b| b.broke_s));
    list.extend(remedy::to_not_fixes(NOT_FIXES));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(survived_s: f64, broke_s: f64) -> Vec<&'static str> {
        candidates(Bracket { survived_s, broke_s, breaks: 2 })
    }

    #[test]
    fn only_limits_within_the_bracket_and_near_its_end_are_named() {
        assert_eq!(named(348.0, 350.2), ["AWS NLB, NAT gateway, Nitro v6 conntrack"]);
        assert!(named(351.0, 352.0).is_empty());
        assert!(named(100.0, 352.0) == ["AWS NLB, NAT gateway, Nitro v6 conntrack"]);
    }
}
