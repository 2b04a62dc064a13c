//! A firewall rule answered with a reset.

use super::{Cause, Doc, Family, Need, NotFix, Sign, Verdict, human_s, nothing_ruled_out, remedy};
use crate::{
    evidence::{Evidence, has},
    fix::{Fix, FixOwner, Remedy, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "firewall_reject",
    family: Family::Policy,
    title: "a rule answered with a reset",
    doc: Doc {
        about: "An nftables `reject with tcp reset` or an iptables `REJECT --reject-with \
                tcp-reset` rule dropped the packet and answered it with a reset in the peer's name \
                (nf_send_reset). The peer never saw the packet. Without kprobes the reset itself is not \
                seen; what is seen is the drop, and the reset that its sender receives in the same \
                instant.",
        signs: &[
            Sign::observed(
                "nf_send_reset or nf_send_reset6 ran for the packet",
                &[Need::Full("firewall_reset")],
            ),
            Sign::correlated(
                "netfilter dropped the packet, its sender received a reset within 50 ms, and no \
                 stack on this host sent one",
                &[
                    Need::Any("firewall_reset"),
                    Need::Any("reset_received"),
                    Need::Full("reset_sent"),
                ],
            ),
        ],
        mistaken_for: &[
            ("connection_refused", "a closed port answers a SYN in the same way; here a rule did"),
            ("peer_state_lost", "a rule on another host looks like this from here"),
        ],
        fixes: &[CHANGE_RULE],
        not_fixes: NOT_FIXES,
    },
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

const CHANGE_RULE: Remedy = Remedy {
    id: "change_the_rule",
    owner: FixOwner::Firewall,
    risk: Risk::Medium,
    summary: "change the reject rule",
    reason: "the connection was refused by policy, not by the peer",
    how: "nft list ruleset, iptables-save and ip6tables-save in that namespace show it: look for \
          `reject with tcp reset` or `--reject-with tcp-reset`",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("any timeout or keepalive sysctl", "a rule does not look at them")];

/// A rule's reset arrives in the same softirq as the drop of the packet it answers.
const SAME_PACKET_S: f64 = 0.05;

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if let Some(at) = evidence.rejected() {
        let place = evidence.place(at.netns).describe();
        let tool = if has(&at.it.stack, "reject_tg") || has(&at.it.stack, "reject_tg6") {
            "an iptables REJECT rule"
        } else if at.it.stack.iter().any(|name| name.starts_with("nft_reject")) {
            "an nftables reject rule"
        } else {
            "a firewall rule"
        };
        return Some(
            Verdict::new(Confidence::Observed, format!("{tool} {place} answered it with a reset"))
                .finding(Finding {
                    kind: "firewall_reset",
                    ts: at.ts,
                    summary: format!(
                        "{tool} {place} reset {}",
                        at.it.trigger.map_or("a packet".into(), |t| t.flow.to_string())
                    ),
                }),
        );
    }
    // Without kprobes: the packet was dropped by netfilter, its sender received a reset at once, and
    // no stack on this host sent one.
    let received = evidence.received()?;
    if evidence.sent().is_some_and(|sent| sent.ts <= received.ts) {
        return None;
    }
    let (loss, drop) = evidence.drops().iter().find(|(loss, drop)| {
        !drop.is_failure()
            && drop.packet.flow == received.it.socket.flow
            && evidence.age_s(loss.ts).abs() < SAME_PACKET_S
    })?;
    let place = evidence.place(loss.netns).describe();
    Some(
        Verdict::new(
            Confidence::Correlated,
            format!("a firewall rule {place} dropped its packet and answered with a reset"),
        )
        .finding(Finding {
            kind: "netfilter_drop",
            ts: loss.ts,
            summary: format!(
                "netfilter dropped {} {place}, {} before the reset came",
                drop.packet.flow,
                human_s(evidence.age_s(loss.ts).abs())
            ),
        })
        .prove("nft monitor trace, or the rule's own counter"),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let netns = evidence.rejected().map_or(evidence.case.netns, |at| at.netns);
    vec![Fix {
        summary: format!("change the reject rule {}", evidence.place(netns).describe()),
        ..CHANGE_RULE.fix()
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
