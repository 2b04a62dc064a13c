//! A firewall rule answered with a reset.

use super::{Cause, Family, NotFix, Verdict, human_s, nothing_ruled_out};
use crate::{
    evidence::{Evidence, has},
    fix::{Change, Fix, FixOwner, Risk},
    incident::{Confidence, Finding},
};

pub const CAUSE: Cause = Cause {
    id: "firewall_reject",
    family: Family::Policy,
    title: "a rule answered with a reset",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

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
        !drop.table_full
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
        id: "change_the_rule",
        owner: FixOwner::Firewall,
        risk: Risk::Medium,
        summary: format!("change the reject rule {}", evidence.place(netns).describe()),
        reason: "the connection was refused by policy, not by the peer".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "nft list ruleset, iptables-save and ip6tables-save in that namespace show it: look for \
                   `reject with tcp reset` or `--reject-with tcp-reset`"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![("any timeout or keepalive sysctl".into(), "a rule does not look at them".into())]
}
