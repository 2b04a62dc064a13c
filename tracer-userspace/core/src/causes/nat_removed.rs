//! The rules that translated the connection were removed, and with them the translation.

use rsttrace_model::units::human_s;

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "nat_removed",
    family: Family::StateLost,
    title: "the last NAT chain was removed, and with it the translation of established connections",
    doc: Doc {
        about: "netfilter translates packets only in a network namespace that has a NAT chain (nftables) \
                or a nat table (iptables) of their address family (nf_nat_unregister_fn, \
                net/netfilter/nf_nat_core.c). When the last one is removed, as kube-proxy --cleanup \
                does in nftables mode, the conntrack entries of established connections stay, but \
                their packets are no longer translated: they go to an address that no host answers \
                for, or reach a host that does not know the connection. Removing rules while a chain is \
                left does no harm, because only the first packet of a connection is matched against \
                them, unless the last rule of the namespace that needs conntrack goes as well. The \
                connection's entry is read by netlink, only while nf_conntrack_netlink is loaded, as \
                it is under kube-proxy.",
        detections: &[Detection::correlated(
            "the removal of a NAT chain was seen, no other is left in that namespace, and the \
             connection, whose entry still exists there and translates it, then timed out or was \
             reset",
            &[RequiredSignal::Any("nat_chain_removed")],
        )],
        mistaken_for: &[
            ("conntrack_deleted", "there the entry is gone and the rules are left"),
            ("retransmission_timeout", "no answer came for another reason, and NAT still works"),
        ],
        fixes: &[PUT_BACK],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ceiling: Confidence::Correlated,
    ..Cause::BASE
};

const PUT_BACK: Remedy = Remedy {
    id: "keep_the_nat_chains",
    owner: FixOwner::Firewall,
    risk: Risk::Low,
    summary: "keep at least one NAT chain while translated connections exist",
    reason: "conntrack translates the packets of an entry only where NAT is hooked in",
    how: "load the new rule set in one transaction (nft -f), or drain the node before the rules are \
          removed (kubectl drain before kube-proxy --cleanup)",
};

const NOT_FIXES: &[(&str, &str)] = &[
    ("any conntrack timeout", "the entry still exists; it is not applied"),
    ("net.ipv4.tcp_keepalive_*", "a probe is not translated either"),
];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let lost_state = evidence.looks_like_lost_state();
    let (at, _) = evidence.nat_removal().filter(|_| lost_state)?;
    let (task, before) = (&at.value.task, human_s(evidence.age_s(at.ts)));
    let place = evidence.place(at.netns).describe();
    let family = at.value.family_name();
    Some(
        Verdict::new(
            Confidence::Correlated,
            format!("its packets were no longer translated: {task} had removed the last {family} NAT chain {place} {before} earlier"),
        )
        .finding(Finding {
            kind: "nat_chain_removed",
            ts: at.ts,
            summary: format!(
                "{task} removed a NAT chain {place}, {before} earlier; none of {family} is left there, \
                 and the connection's entry still translates it"
            ),
        }),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let removal = evidence.nat_removal();
    let by_kube_proxy = removal.is_some_and(|(at, _)| at.value.task.comm == "kube-proxy");
    let owner = if by_kube_proxy { FixOwner::KubeProxy } else { PUT_BACK.owner };
    vec![Fix { owner, ..PUT_BACK.fix() }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
