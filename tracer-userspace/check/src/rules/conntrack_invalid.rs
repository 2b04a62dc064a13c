//! Segments outside the TCP window: passed on without translation, or dropped by a rule.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::{
    firewall::{Answer, Chain, Hook, InvalidRule},
    host_state::Netns,
};

use super::{Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank, some_of},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_invalid",
    causes: &[CAUSE, HANGS],
    doc: "With nf_conntrack_tcp_be_liberal=0 a segment outside the window is INVALID and is not translated; \
          the host that receives it with the untranslated address answers with a reset \
          (net/netfilter/nf_conntrack_proto_tcp.c, tcp_in_window). Where a rule drops INVALID packets, there is \
          no reset: a connection whose window conntrack misjudged, or of which conntrack sees one direction \
          only, hangs until its retries run out. A rule that answers INVALID packets with a reset is one more \
          source of resets. Whether the drop policy of a chain stops a packet depends on rules that accept it, \
          which are not read.",
    judge,
};

const CAUSE: &str = "conntrack_invalid";
const HANGS: &str = "retransmission_timeout";
const KEY: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    let strict = input.namespaces().filter(|netns| netns.values.is_on(KEY) == Some(false));
    for netns in strict {
        let of_setting = origin::owner(input.state, netns, KEY);
        let passed = [passed_on(netns), passed_to_this_host(netns)];
        let passed = passed.into_iter().flatten().map(|it| it.owner(of_setting));
        let answered = [answered(netns, false), answered(netns, true)].into_iter().flatten();
        findings.extend(passed.chain(answered).map(|finding| {
            finding.source(origin::of(input.state, netns, KEY)).fix(remedies::by_setting(
                CAUSE,
                "conntrack_be_liberal",
                netns,
                KEY,
                1,
            ))
        }));
    }
    for finding in findings.iter_mut().filter(|it| it.cause == Some(CAUSE)) {
        finding.fixes.extend(remedies::documented(CAUSE, "drop_invalid"));
    }
    findings
}

/// INVALID packets that a namespace with NAT forwards.
fn passed_on(netns: &Netns) -> Option<CheckFinding> {
    if netns.translates != Some(true) || stops(netns, Hook::Forward) {
        return None;
    }
    let rules = rules(netns);
    let policy = drop_policy(netns);
    let but = if netns.firewall.is_none() || !netns.legacy_tables.is_empty() {
        ", unless a rule drops INVALID packets".to_owned()
    } else if let Some(policy) = policy {
        format!(", unless the drop policy of {policy} stops it because no rule accepts it before")
    } else if rules.is_empty() {
        String::new()
    } else {
        format!("; only some are stopped by {}", names(&rules))
    };
    let reason = format!(
        "a segment outside the TCP window is not translated {}, and its connection is reset{but}{}",
        netns.place.describe(),
        so_far(netns)
    );
    let found = CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason).cause(CAUSE);
    Some(found.formula("NAT and tcp_be_liberal = 0, or a rule `ct state invalid drop`"))
}

/// A rule stops INVALID packets that are forwarded, but not those for a local socket (Kubernetes issue 117924).
fn passed_to_this_host(netns: &Netns) -> Option<CheckFinding> {
    let only_forwarded = stops(netns, Hook::Forward) && !stops(netns, Hook::Input);
    if netns.translates != Some(true) || !only_forwarded {
        return None;
    }
    let reason = format!(
        "no rule stops INVALID packets in hook input {}: a segment outside the TCP window still resets a \
         translated connection of a local socket",
        netns.place.describe()
    );
    let found = CheckFinding::new(RULE.id, Rank::Info, &netns.place, reason).cause(CAUSE);
    Some(
        found
            .formula("NAT and tcp_be_liberal = 0, or a rule `ct state invalid drop` in hook input"),
    )
}

/// Rules that stop INVALID packets, with a reset or without.
fn answered(netns: &Netns, reset: bool) -> Option<CheckFinding> {
    let mut rules = rules(netns);
    rules.retain(|rule| (rule.answer == Answer::Reset) == reset);
    if rules.is_empty() {
        return None;
    }
    let stops_forwarded = |rule: &&InvalidRule| {
        rule.hooks.contains(&Hook::Forward) || rule.hooks.contains(&Hook::Prerouting)
    };
    let rank = match netns.translates == Some(true) || rules.iter().any(stops_forwarded) {
        true => Rank::Warn,
        false => Rank::Info,
    };
    let what = match (rules.len(), reset) {
        (1, true) => "answers INVALID packets with a reset",
        (_, true) => "answer INVALID packets with a reset",
        (1, false) => "drops INVALID packets",
        (_, false) => "drop INVALID packets",
    };
    let then = match reset {
        true => "a segment outside the TCP window resets its connection",
        false => {
            "a connection whose window conntrack misjudges hangs until its retries run out, and a connection \
             of which only one direction passes there is never established"
        }
    };
    let place = netns.place.describe();
    let reason = format!("{} {what} {place}: {then}{}", names(&rules), so_far(netns));
    let cause = if reset { CAUSE } else { HANGS };
    let formula = match reset {
        true => "tcp_be_liberal = 0 and a rule `ct state invalid reject with tcp reset`",
        false => "tcp_be_liberal = 0 and a rule `ct state invalid drop`",
    };
    let finding = CheckFinding::new(RULE.id, rank, &netns.place, reason).cause(cause);
    Some(finding.formula(formula).owner(owner(&rules)))
}

fn rules(netns: &Netns) -> Vec<&InvalidRule> {
    netns.firewall.iter().flat_map(|firewall| &firewall.invalid).collect()
}

/// Whether a rule without further conditions stops INVALID packets at this hook.
fn stops(netns: &Netns, hook: Hook) -> bool {
    rules(netns).iter().any(|rule| {
        let there = rule.hooks.contains(&Hook::Prerouting) || rule.hooks.contains(&hook);
        there && !rule.narrowed && rule.at.chain.sees_ipv4()
    })
}

/// A chain whose policy drops forwarded packets that no rule accepts.
fn drop_policy(netns: &Netns) -> Option<&Chain> {
    let policies = netns.firewall.iter().flat_map(|firewall| &firewall.drop_policies);
    let mut forwarded = policies
        .filter(|it| matches!(it.hook, Hook::Forward | Hook::Prerouting) && it.chain.sees_ipv4());
    forwarded.next().map(|policy| &policy.chain)
}

/// The owner of rules: their program where all are of one, else the administrator of the firewall.
fn owner(rules: &[&InvalidRule]) -> FixOwner {
    let mut owners = rules.iter().map(|rule| origin::rule_owner(&rule.at));
    match owners.next() {
        Some(first) if owners.all(|other| other == first) => first,
        _ => FixOwner::Firewall,
    }
}

fn names(rules: &[&InvalidRule]) -> String {
    let names: Vec<_> = rules.iter().map(|rule| rule.at.with_owner()).collect();
    some_of(&names)
}

fn so_far(netns: &Netns) -> String {
    match netns.conntrack.invalid.unwrap_or(0) {
        0 => String::new(),
        1 => "; 1 packet was INVALID so far".into(),
        count => format!("; {count} packets were INVALID so far"),
    }
}
