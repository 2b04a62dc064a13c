//! Reject rules: which tool made a rule, and what to change.

use rsttrace_model::netns::Place;

use crate::{
    event::{Stack, has},
    fix::{Fix, FixOwner, Remedy, Risk},
};

/// The fix for every cause in which a rule answered in the peer's name.
pub const CHANGE_RULE: Remedy = Remedy {
    id: "change_the_rule",
    owner: FixOwner::Firewall,
    risk: Risk::Medium,
    summary: "change the reject rule",
    reason: "the connection was refused by policy, not by the peer",
    how: "find the rule with nft list ruleset, iptables-save or ip6tables-save in that namespace \
          (look for `reject` or `-j REJECT`), and change it",
};

/// The tool that made the rule, as far as the stack shows. iptables-nft also evaluates its targets below
/// nft_do_chain.
pub fn tool(stack: &Stack) -> &'static str {
    let runs = |part: &str| stack.iter().any(|name| name.starts_with(part));
    if runs("reject_tg") || runs("nft_target_eval") {
        "an iptables REJECT rule"
    } else if has(stack, "nft_do_chain") {
        "an nftables reject rule"
    } else {
        "a firewall rule"
    }
}

/// [`CHANGE_RULE`], where the rule is.
pub fn change_the_rule(place: Place) -> Fix {
    Fix { summary: format!("change the reject rule {}", place.describe()), ..CHANGE_RULE.fix() }
}
