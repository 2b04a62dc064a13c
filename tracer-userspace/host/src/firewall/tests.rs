//! One ruleset of a guest with Linux 6.1, nft 1.0.6 and iptables-nft 1.8.9: the kernel's netlink messages,
//! and the output of `nft -a list ruleset`.

use std::io;

use rsttrace_model::firewall::{Interface, Outgoing};

use super::*;

const DUMP: &str = include_str!("dump-6.1.txt");
const PRINTED: &str = include_str!("ruleset-6.1.txt");

/// "rule 0200…"
fn messages(kind: &str) -> impl Iterator<Item = Vec<u8>> {
    DUMP.lines().filter_map(move |line| {
        let hex = line.strip_prefix(kind)?.trim();
        let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        (0..hex.len()).step_by(2).map(byte).collect()
    })
}

fn dumped() -> Firewall {
    let (chains, rules): (Vec<_>, Vec<_>) =
        (messages("chain").collect(), messages("rule").collect());
    let elements: Vec<_> = messages("elements").collect();
    assert_eq!((chains.len(), rules.len()), (7, 21));
    netlink::of_messages(&chains, &rules, &elements).expect("valid")
}

/// "inet filter forward 3 Drop", followed by "if" where the rule has further conditions.
fn summary(firewall: &Firewall, hook: Option<Hook>) -> Vec<String> {
    let rules =
        firewall.invalid.iter().filter(|it| hook.is_none_or(|hook| it.hooks.contains(&hook)));
    rules
        .map(|InvalidRule { at: RulePlace { chain, handle }, answer, narrowed, .. }| {
            let condition = if *narrowed { " if" } else { "" };
            let Chain { family, table, name } = chain;
            format!("{family} {table} {name} {handle} {answer:?}{condition}")
        })
        .collect()
}

#[test]
fn rules_that_stop_invalid_packets_are_found_in_every_form() {
    let found = dumped();
    assert_eq!(
        summary(&found, Some(Hook::Forward)),
        [
            "inet filter forward 3 Drop",
            "inet filter forward 4 Drop if",
            "inet filter forward 6 Drop",
            "inet filter forward 8 Reset",
            "inet filter forward 9 Icmp",
            "inet filter forward 11 Drop",
            "inet filter forward 12 Drop",
            "inet filter forward 13 Icmp",
            "ip filter KUBE-FORWARD 4 Drop",
        ]
    );
    assert_eq!(
        summary(&found, Some(Hook::Input)),
        [
            "ip filter INPUT 6 Drop if",
            "ip filter INPUT 7 Reset",
            "ip filter INPUT 8 Drop",
            "ip filter INPUT 9 Icmp",
        ]
    );
    assert_eq!(found.invalid.len(), 13);
}

#[test]
fn the_interfaces_of_masquerading_are_found() {
    let of = |handle| {
        let rules = dumped().masquerades.into_iter();
        rules.filter(|it| it.at.handle == handle).map(|it| it.out).next().expect("a rule")
    };
    assert_eq!(of(2), Outgoing::Only(Interface::Name("ppp0".into())));
    assert_eq!(of(3), Outgoing::Only(Interface::Index(1)));
    assert_eq!(of(4), Outgoing::All);
    assert_eq!(of(6), Outgoing::Only(Interface::Name("eth0".into())));
    assert_eq!(of(7), Outgoing::Except(Interface::Name("docker0".into())));
}

#[test]
fn the_printed_ruleset_equals_the_netlink_dump() {
    let mut dumped = dumped();
    for rule in &mut dumped.masquerades {
        if rule.out == Outgoing::Only(Interface::Index(1)) {
            rule.out = Outgoing::Only(Interface::Name("lo".into()));
        }
    }
    assert!(dumped.translates);
    assert_eq!(parse(PRINTED), dumped);
}

#[test]
fn a_comment_that_looks_like_a_rule_is_not_a_rule() {
    let printed = |rule: &str| {
        let text = format!(
            "table inet t {{\nchain c {{\ntype filter hook forward priority 0; policy accept;\n{rule}\n}}\n}}"
        );
        parse(&text).invalid
    };
    assert_eq!(printed("ct state invalid drop").len(), 1);
    assert_eq!(printed("tcp dport 22 accept comment \"ct state invalid drop\"").len(), 0);
    assert_eq!(printed("ct state established,related accept").len(), 0);
    assert_eq!(printed("ct state invalid accept").len(), 0);
    assert_eq!(printed("tcp dport 22 drop").len(), 0);
    assert_eq!(printed("meta l4proto udp ct state invalid drop").len(), 0);
    assert_eq!(printed("ct state vmap { established : accept, invalid : jump x }").len(), 0);
}

#[test]
fn chains_that_jump_in_a_circle_have_no_hooks() {
    let text = "table ip t {\nchain a {\njump b\n}\nchain b {\njump a\nct state invalid drop\n}\n}";
    let found = parse(text).invalid;
    assert_eq!((found.len(), found[0].hooks.len()), (1, 0));
}

#[test]
fn a_truncated_rule_is_an_error_and_never_a_panic() {
    for rule in messages("rule") {
        for cut in 0..rule.len() {
            let cut = [rule[..cut].to_vec()];
            let _: io::Result<Firewall> = netlink::of_messages(&[], &cut, &[]);
        }
        let cut = [rule[..rule.len() - 5].to_vec()];
        assert!(netlink::of_messages(&[], &cut, &[]).is_err());
    }
}

#[test]
fn iptables_legacy_tables_are_named() {
    let root = crate::testing::TempRoot::new();
    root.file("ip_tables_names", "filter\nnat\n");
    root.file("ip6_tables_names", "raw\n");
    assert_eq!(legacy_in(root.path()), ["iptables filter", "iptables nat", "ip6tables raw"]);
}
