//! An interface went down or lost its address, and the kernel deleted the NAT entries that used it.

use rsttrace_model::units::human_s;

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
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
        about: "`masquerade` takes the source address from the interface at a connection's first \
                packet. When that interface goes down or loses the address, the kernel deletes the \
                entries that use that address (net/netfilter/nf_nat_masquerade.c). The next packet \
                creates a new entry. With the same address the entry usually gets its old port and \
                nothing breaks; with another address the server does not know the connection and \
                resets it.",
        detections: &[
            Detection::observed(
                "the entry was deleted by iterate_cleanup_work() or masq_device_event(), and a TCP \
                 stack without this connection reset the next packet",
                &[
                    RequiredSignal::Any("conntrack_end"),
                    RequiredSignal::Full("reset_sent"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::correlated(
                "the flush was seen, the sender of the reset was not",
                &[
                    RequiredSignal::Any("conntrack_end"),
                    RequiredSignal::Any("reset_received"),
                    RequiredSignal::Any("kernel_symbols"),
                ],
            ),
            Detection::inferred(
                "the same, and the server had sent its FIN before; whether it had closed its socket is \
                 not known",
                &[RequiredSignal::Any("conntrack_end")],
            ),
        ],
        mistaken_for: &[
            ("conntrack_deleted", "a program deleted the entry through netlink"),
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
    reason: "every connection masqueraded as that address breaks at its next packet",
    how: "run ip monitor address link to see the change live; the usual causes are DHCP renewals, \
          restarts of networkd or NetworkManager, and CNI upgrades",
};

const FIXED_SNAT: Remedy = Remedy {
    id: "snat_to_a_fixed_address",
    owner: FixOwner::Firewall,
    risk: Risk::Medium,
    summary: "use `snat to ADDRESS` in place of `masquerade`",
    reason: "only masquerading watches interfaces; SNAT entries survive a link that comes back \
             with its address",
    how: "find the rule with nft list ruleset or iptables-save -t nat, and replace its target",
};

const NOT_FIXES: &[(&str, &str)] =
    &[("any conntrack timeout", "the entry was deleted, however much time it had left")];

/// What changed at the interface (net/netfilter/nf_nat_masquerade.c). The flush may run later in a worker,
/// whose stack no longer shows which event it was.
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
            format!("its masquerading entry ({address}) was flushed {place} because {change}"),
        )
        .finding(Finding {
            kind: "masquerade_flushed",
            ts: loss.ts,
            summary: format!(
                "the kernel deleted the entry {} (masqueraded as {}) {place} because {change}, {} \
                 earlier",
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
    remedy::to_not_fixes(NOT_FIXES)
}
