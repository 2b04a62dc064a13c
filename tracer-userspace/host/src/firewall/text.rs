//! Parses the output of `nft -a list ruleset`, for a directory that stands in for a host.

use rsttrace_model::firewall::{Answer, Chain, Firewall, Hook, Interface, Outgoing, RulePlace};

use super::{
    Reader,
    rule::{self, Step},
};

/// Lines that cannot be parsed are skipped.
pub(super) fn parse(text: &str) -> Firewall {
    let mut reader = Reader::default();
    let mut table: Option<(&'static str, String)> = None;
    let mut chain: Option<Chain> = None;
    for line in text.lines() {
        let (line, handle) = handle_of(line.trim());
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match (words.as_slice(), &chain) {
            (["table", family, name, "{"], _) => {
                table = Some((known_family(family), (*name).to_owned()))
            }
            (["chain", name, "{"], _) => {
                let open = table.iter().filter(|(family, _)| !family.is_empty());
                let mut named = open.map(|(family, table)| Chain {
                    family,
                    table: table.clone(),
                    name: (*name).to_owned(),
                });
                chain = named.next();
            }
            (["}"], _) => chain = None,
            (["type", kind, "hook", hook, rest @ ..], Some(chain)) => {
                let drops = rest.windows(2).any(|it| it[0] == "policy" && it[1] == "drop;");
                if let Some(hook) = Hook::ALL.into_iter().find(|it| it.id() == *hook) {
                    reader.base(chain.clone(), hook, kind, drops);
                }
            }
            (words, Some(chain)) => {
                if let Some(effect) = rule::effect(steps(words)) {
                    reader.rule(RulePlace { chain: chain.clone(), handle }, effect);
                }
            }
            _ => {}
        }
    }
    reader.finish()
}

fn known_family(family: &str) -> &'static str {
    ["ip", "ip6", "inet"].into_iter().find(|it| *it == family).unwrap_or_default()
}

/// Splits "… # handle 5"; the handle is 0 where there is none.
fn handle_of(line: &str) -> (&str, u64) {
    let parts = line.rsplit_once(" # handle ");
    parts.and_then(|(line, number)| Some((line, number.parse().ok()?))).unwrap_or((line, 0))
}

/// The words of a line. A quoted string is one word, which keeps its opening quote.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('"').enumerate() {
        match at % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(format!("\"{part}")),
        }
    }
    words
}

fn steps(mut words: &[&str]) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((first, rest)) = words.split_first() {
        let mut used = 0;
        match (*first, rest) {
            ("ct", ["state", rest @ ..]) => {
                let (mut found, taken) = state(rest);
                steps.append(&mut found);
                used = 1 + taken;
            }
            ("counter", ["packets", _, "bytes", ..]) => used = 4,
            ("prefix" | "level" | "group" | "comment", [_, ..]) => used = 1,
            ("counter" | "log", _) => {}
            ("oif" | "oifname", ["!=", name, ..]) => {
                steps.push(Step::Out(Outgoing::Except(interface(name))));
                used = 2;
            }
            ("oif" | "oifname", ["{", ..]) => steps.push(Step::Out(Outgoing::Some)),
            ("oif" | "oifname", [name, ..]) => {
                steps.push(Step::Out(Outgoing::Only(interface(name))));
                used = 1;
            }
            ("meta", ["l4proto", protocol @ ("tcp" | "6" | "udp" | "17"), ..]) => {
                steps.push(Step::Protocol(matches!(*protocol, "tcp" | "6")));
                used = 2;
            }
            ("masquerade", _) => steps.push(Step::Masquerade),
            ("jump" | "goto", [chain, ..]) => steps.push(Step::Jump((*chain).to_owned())),
            (verdict @ ("drop" | "reject"), rest) => steps.push(answer(verdict, rest)),
            _ => steps.push(Step::Narrow),
        }
        words = rest.get(used..).unwrap_or_default();
    }
    steps
}

fn answer(verdict: &str, rest: &[&str]) -> Step {
    Step::Answer(match (verdict, rest) {
        ("drop", _) => Answer::Drop,
        (_, ["with", "tcp", "reset", ..]) => Answer::Reset,
        _ => Answer::Icmp,
    })
}

fn interface(name: &str) -> Interface {
    let name = name.trim_start_matches('"');
    match name.strip_suffix('*') {
        Some(prefix) => Interface::Prefix(prefix.to_owned()),
        None => Interface::Name(name.to_owned()),
    }
}

/// Parses the words after "ct state": "invalid,new", "!= { established, related }", "vmap { invalid : drop }".
/// Returns the steps and the number of words that were used.
fn state(words: &[&str]) -> (Vec<Step>, usize) {
    let mut taken = 0;
    let mut next = || {
        taken += 1;
        words.get(taken - 1).copied().unwrap_or_default()
    };
    let mut word = next();
    let inverted = matches!(word, "!=" | "!");
    let mapped = word == "vmap";
    if inverted || mapped || word == "==" {
        word = next();
    }
    let mut list = Vec::new();
    if word == "{" {
        loop {
            match next() {
                "}" | "" => break,
                word => list.push(word),
            }
        }
    } else {
        list.push(word);
    }
    let list = list.join(" ");
    let invalid = list.split(',').map(str::trim).find(|it| it.split(' ').next() == Some("invalid"));
    let mut steps = vec![Step::State(invalid.is_some() != inverted)];
    if let Some((_, verdict)) = invalid.filter(|_| mapped).and_then(|it| it.split_once(" : ")) {
        match verdict.split_once(' ') {
            Some(("jump" | "goto", chain)) => steps.push(Step::Jump(chain.to_owned())),
            None if verdict == "drop" => steps.push(Step::Answer(Answer::Drop)),
            _ => {}
        }
    }
    (steps, taken)
}
