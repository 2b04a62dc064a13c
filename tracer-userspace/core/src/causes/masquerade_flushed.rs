//! An interface went down or lost its address, and the kernel deleted the NAT entries that used it.

use rsttrace_model::units::human_s;

use super::{
    cause::Cause,
    doc::{Doc, Need, Sign},
    remedy,
};
use crate::{
    event::{ConntrackEnd, has},
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "masquerade_flushed",
    family: Family::StateLost,
    title: "an interface went down or changed address and its NAT entries went with it",
    doc: Doc {
        about: "`masquerade` takes the source address from the interface at a connection's first packet. \
                When that interface goes down or loses the address, the kernel deletes the entries that \
                use it (net/netfilter/nf_nat_masquerade.c). The next packet makes a new entry: with the \
                same address it is usually given its old port and nothing breaks; with another one the \
                server sees a stranger and resets it.",
        signs: &[
            Sign::observed(
                "the entry was deleted below iterate_cleanup_work() or masq_device_event(), and a stack \
                 without state reset the next packet",
                &[
                    Need::Any("conntrack_end"),
                    Need::Full("reset_sent"),
                    Need::Any("kernel_symbols"),
                ],
            ),
            Sign::correlated(
                "the flush was seen, the sender of the reset was not",
                &[
                    Need::Any("conntrack_end"),
                    Need::Any("reset_received"),
                    Need::Any("kernel_symbols"),
                ],
            ),
        ],
        mistaken_for: &[
            ("conntrack_deleted", "there a program asked, by netlink"),
            ("a link that flaps", "as long as the address comes back, nothing breaks"),
        ],
        fixes: &[KEEP_ADDRESS, FIXED_SNAT],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const KEEP_ADDRESS: Remedy = Remedy {
    id: "keep_the_address",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "find out what took the address away, and keep it on its interface",
    reason: "every connection masqueraded as it breaks at its next packet",
    how: "ip monitor address link shows it live; DHCP renewals, networkd or NetworkManager restarts and \
          CNI upgrades are the usual ones",
};

const FIXED_SNAT: Remedy = Remedy {
    id: "snat_to_a_fixed_address",
    owner: FixOwner::Firewall,
    risk: Risk::Medium,
    summary: "use `snat to ADDRESS` in place of `masquerade`",
    reason: "only masquerading watches interfaces; SNAT entries survive a link that comes back with its \
             address",
    how: "nft list ruleset and iptables-save -t nat show the rule",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("any conntrack timeout", "the entry was deleted, whatever time it had left")];

/// What of the interface changed (net/netfilter/nf_nat_masquerade.c). The work runs later, in a worker
/// that no longer tells which it was.
fn change(end: &ConntrackEnd) -> Option<&'static str> {
    let by = |function| has(&end.stack, function);
    if end.portid != 0 {
        None
    } else if by("masq_device_event") {
        Some("its interface went down")
    } else if by("masq_inet_event") || by("masq_inet6_event") {
        Some("its interface lost the address")
    } else if by("iterate_cleanup_work") {
        Some("its interface went down or lost the address")
    } else {
        None
    }
}

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, end) = evidence.conntrack()?;
    let change = change(end)?;
    let place = evidence.place(loss.netns).describe();
    let address = end.reply.dst.ip();
    Some(
        Verdict::new(
            evidence.lost_entry_confidence(),
            format!("its masquerading entry ({address}) was flushed {place}: {change}"),
        )
        .finding(Finding {
            kind: "masquerade_flushed",
            ts: loss.ts,
            summary: format!(
                "the kernel deleted the entry {} (masqueraded as {}) {place} because {change}, {} \
                 before",
                end.original,
                end.reply.dst,
                human_s(evidence.age_s(loss.ts)),
            ),
        }),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let Some((_, end)) = evidence.conntrack() else {
        return Vec::new();
    };
    let address = end.reply.dst.ip();
    vec![
        Fix {
            summary: format!("find out what took {address} away, and keep it on its interface"),
            ..KEEP_ADDRESS.fix()
        },
        Fix {
            summary: format!("use `snat to {address}` in place of `masquerade`"),
            current: Some("masquerade".into()),
            wanted: Some(format!("snat to {address}")),
            ..FIXED_SNAT.fix()
        },
    ]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::told(NOT_FIXES)
}
