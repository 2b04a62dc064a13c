//! Segments out of the window: passed on without translation, or dropped by a rule.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::{
    firewall::{Answer, Hook, InvalidRule},
    host_state::Netns,
};

use super::{Question, Rule};
use crate::{
    finding::{Finding, Rank, some_of},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "conntrack_invalid",
    causes: &[CAUSE, HANGS],
    doc: "With nf_conntrack_tcp_be_liberal=0 a segment outside the window is INVALID and is not translated; \
          the host that gets it under the wrong address answers with a reset \
          (net/netfilter/nf_conntrack_proto_tcp.c, tcp_in_window). Where a rule drops INVALID packets there is \
          no reset: a connection whose window conntrack misjudged, or of which it sees one direction only, \
          hangs until its retries run out; where it answers them with a reset, that is one more who resets. Rules that follow from a chain's policy are not counted.",
    judge,
};

const CAUSE: &str = "conntrack_invalid";
const HANGS: &str = "retransmission_timeout";
const KEY: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let strict = question.namespaces().filter(|netns| netns.values.is_on(KEY) == Some(false));
    for netns in strict {
        let found = [
            passed_on(netns),
            passed_to_this_host(netns),
            answered(netns, false),
            answered(netns, true),
        ];
        findings.extend(found.into_iter().flatten().map(|finding| {
            finding
                .owner(FixOwner::Node)
                .source(origin::of(question.view, netns, KEY))
                .fix(remedies::by_setting(CAUSE, "conntrack_be_liberal", netns, KEY, 1))
        }));
    }
    for finding in findings.iter_mut().filter(|it| it.cause == Some(CAUSE)) {
        finding.fixes.extend(remedies::documented(CAUSE, "drop_invalid"));
    }
    findings
}

/// What nobody stops on its way through a namespace that translates.
fn passed_on(netns: &Netns) -> Option<Finding> {
    if netns.translates != Some(true) || stops(netns, Hook::Forward) {
        return None;
    }
    let rules = rules(netns);
    let but = if netns.firewall.is_none() || !netns.legacy_tables.is_empty() {
        ", unless a rule drops INVALID packets".to_owned()
    } else if rules.is_empty() {
        String::new()
    } else {
        format!("; only some are stopped by {}", names(&rules))
    };
    let reason = format!(
        "a segment outside the window is not translated {} and ends its connection with a reset{but}{}",
        netns.place.describe(),
        so_far(netns)
    );
    let found = Finding::new(RULE.id, Rank::Warn, &netns.place, reason).cause(CAUSE);
    Some(found.formula("NAT and tcp_be_liberal = 0, or a rule `ct state invalid drop`"))
}

/// A rule stops what is forwarded, and not what is meant for a program here (Kubernetes issue 117924).
fn passed_to_this_host(netns: &Netns) -> Option<Finding> {
    let only_forwarded = stops(netns, Hook::Forward) && !stops(netns, Hook::Input);
    if netns.translates != Some(true) || !only_forwarded {
        return None;
    }
    let reason = format!(
        "no rule stops INVALID packets in hook input {}: a program there whose own connection is translated \
         still resets it at a segment outside the window",
        netns.place.describe()
    );
    let found = Finding::new(RULE.id, Rank::Info, &netns.place, reason).cause(CAUSE);
    Some(
        found
            .formula("NAT and tcp_be_liberal = 0, or a rule `ct state invalid drop` in hook input"),
    )
}

/// What rules stop: with a reset, or without.
fn answered(netns: &Netns, reset: bool) -> Option<Finding> {
    let mut rules = rules(netns);
    rules.retain(|rule| (rule.answer == Answer::Reset) == reset);
    if rules.is_empty() {
        return None;
    }
    let of_others = |rule: &&InvalidRule| {
        rule.hooks.contains(&Hook::Forward) || rule.hooks.contains(&Hook::Prerouting)
    };
    let rank = match netns.translates == Some(true) || rules.iter().any(of_others) {
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
        true => "a segment outside the window ends its connection",
        false => {
            "a connection whose window conntrack misjudges hangs until its retries run out, and one of \
             which only one direction passes there is never made"
        }
    };
    let place = netns.place.describe();
    let reason = format!("{} {what} {place}: {then}{}", names(&rules), so_far(netns));
    let cause = if reset { CAUSE } else { HANGS };
    let formula = match reset {
        true => "tcp_be_liberal = 0 and a rule `ct state invalid reject with tcp reset`",
        false => "tcp_be_liberal = 0 and a rule `ct state invalid drop`",
    };
    Some(Finding::new(RULE.id, rank, &netns.place, reason).cause(cause).formula(formula))
}

fn rules(netns: &Netns) -> Vec<&InvalidRule> {
    netns.firewall.iter().flat_map(|firewall| &firewall.invalid).collect()
}

/// Whether a rule without further conditions stops what comes to this hook.
fn stops(netns: &Netns, hook: Hook) -> bool {
    rules(netns).iter().any(|rule| {
        let there = rule.hooks.contains(&Hook::Prerouting) || rule.hooks.contains(&hook);
        there && !rule.narrowed && rule.at.chain.family != "ip6"
    })
}

fn names(rules: &[&InvalidRule]) -> String {
    let names: Vec<_> = rules.iter().map(|rule| rule.at.to_string()).collect();
    some_of(&names)
}

fn so_far(netns: &Netns) -> String {
    match netns.conntrack.invalid.unwrap_or(0) {
        0 => String::new(),
        1 => "; 1 packet was INVALID so far".into(),
        count => format!("; {count} packets were INVALID so far"),
    }
}
