//! Masquerading with an address that may change.

use rsttrace_core::fix::{Fix, FixOwner};
use rsttrace_model::{address::Address, firewall::Masquerade};

use super::{Netns, Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank, some_of},
    remedies,
};

pub const RULE: Rule = Rule {
    id: "masquerade",
    causes: &[CAUSE],
    doc: "When the interface of `masquerade` goes down or loses the address, the kernel deletes the entries \
          that use the address (net/netfilter/nf_nat_masquerade.c, masq_device_event and \
          masq_inet_event), and with another address the connections break. An address with a lifetime \
          (DHCP) or of a point-to-point link (PPP, a tunnel) may change; a static address stays until an \
          administrator removes it. IPv4 only.",
    judge,
};

const CAUSE: &str = "masquerade_flushed";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    input.namespaces().filter_map(may_be_flushed).collect()
}

fn may_be_flushed(netns: &Netns) -> Option<CheckFinding> {
    let rules = &netns.firewall.as_ref()?.masquerades;
    let mut addresses = Vec::new();
    for address in netns.addresses.iter().flatten() {
        let may_change = address.leased || address.point_to_point;
        if may_change && address.ip.is_ipv4() && rules.iter().any(|rule| applies(rule, address)) {
            addresses.push(address);
        }
    }
    let first = addresses.first()?;
    let of: Vec<_> = rules
        .iter()
        .filter(|rule| addresses.iter().any(|address| applies(rule, address)))
        .map(|rule| rule.at.with_owner())
        .collect();
    let names: Vec<_> = addresses.iter().map(|address| describe(address)).collect();
    let reason = format!(
        "connections {} masqueraded by {} break when {} is removed or its interface goes down",
        netns.place.describe(),
        some_of(&of),
        some_of(&names),
    );
    let fix = remedies::documented(CAUSE, "snat_to_a_fixed_address").map(|fix| Fix {
        summary: format!(
            "if {} never changes, use `snat to {}` instead of `masquerade`",
            first.ip, first.ip
        ),
        current: Some("masquerade".into()),
        wanted: Some(format!("snat to {}", first.ip)),
        ..fix
    });
    Some(
        CheckFinding::new(RULE.id, Rank::Info, &netns.place, reason)
            .cause(CAUSE)
            .formula(
                "masquerade with an address that has a lifetime or is on a point-to-point link",
            )
            .owner(FixOwner::Firewall)
            .source(
                "the rules of nftables and iptables, and the flags of the addresses (ip -4 addr)",
            )
            .fix(remedies::documented(CAUSE, "keep_the_address"))
            .fix(fix),
    )
}

fn applies(rule: &Masquerade, address: &Address) -> bool {
    rule.at.chain.sees_ipv4() && address.leaves(&rule.out)
}

/// "192.0.2.7 of eth0 (has a lifetime)"
fn describe(address: &Address) -> String {
    let why = match address.leased {
        true => "has a lifetime",
        false => "point-to-point link",
    };
    match &address.interface {
        Some(interface) => format!("{} of {interface} ({why})", address.ip),
        None => format!("{} ({why})", address.ip),
    }
}
