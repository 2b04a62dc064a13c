//! Firewall rules: INVALID packets, masquerading.

use rsttrace_core::fix::FixOwner;
use rsttrace_host::firewall;
use rsttrace_model::{address::Address, firewall::Hook};

use super::*;

/// A namespace that translates, with these rules as `nft -a list ruleset` prints them.
fn with_rules(rules: &str) -> HostState {
    let text = format!(
        "table ip filter {{\nchain KUBE-FORWARD {{\n{rules}\n}}\nchain FORWARD {{\ntype filter hook forward \
         priority filter; policy accept;\njump KUBE-FORWARD # handle 3\n}}\n}}\n"
    );
    let firewall = Some(firewall::parse(&text));
    host(vec![Netns { translates: Some(true), firewall, ..netns(1) }])
}

#[test]
fn a_rule_that_drops_invalid_packets_is_named_with_its_effect() {
    let predicted = |state: &HostState| -> Vec<_> {
        let found = of_rule(state, "conntrack_invalid");
        found.into_iter().map(|it| (it.rank, it.cause.expect("a cause"))).collect()
    };
    assert_eq!(predicted(&with_rules("")), [(Rank::Warn, "conntrack_invalid")]);
    let drops = with_rules("ct state invalid counter packets 0 bytes 0 drop # handle 4");
    let expected = [(Rank::Warn, "retransmission_timeout"), (Rank::Info, "conntrack_invalid")];
    assert_eq!(predicted(&drops), expected);
    let reason = &of_rule(&drops, "conntrack_invalid")[0].reason;
    let begin = "ip filter KUBE-FORWARD handle 4 (kube-proxy) drops INVALID packets on the host: a connection whose";
    assert!(reason.starts_with(begin), "{reason}");
    let some = with_rules("iifname \"eth0\" ct state invalid drop # handle 4");
    let expected = [(Rank::Warn, "conntrack_invalid"), (Rank::Warn, "retransmission_timeout")];
    assert_eq!(predicted(&some), expected);
    let reason = &of_rule(&some, "conntrack_invalid")[0].reason;
    assert!(reason.contains("; only some are stopped by ip filter KUBE-FORWARD"), "{reason}");
    let resets = with_rules("meta l4proto tcp ct state invalid reject with tcp reset");
    assert_eq!(predicted(&resets)[0], (Rank::Warn, "conntrack_invalid"));
}

#[test]
fn a_rule_about_invalid_packets_is_ignored_where_conntrack_is_liberal_and_not_a_warning_without_nat()
 {
    let mut state = with_rules("ct state invalid drop");
    state.namespaces[0].translates = Some(false);
    assert_eq!(ranks(&state, "conntrack_invalid"), [(Rank::Warn, 1)], "it forwards");
    for rule in &mut state.namespaces[0].firewall.as_mut().expect("rules").invalid {
        rule.hooks = [Hook::Input].into();
    }
    assert_eq!(ranks(&state, "conntrack_invalid"), [(Rank::Info, 1)]);
    set(&mut state.namespaces[0].values, "net.netfilter.nf_conntrack_tcp_be_liberal", 1);
    assert_eq!(ranks(&state, "conntrack_invalid"), []);
}

#[test]
fn rules_that_were_not_read_are_not_taken_as_absent() {
    let mut state = with_rules("");
    let hedged = |state: &HostState| {
        of_rule(state, "conntrack_invalid")[0]
            .reason
            .contains("unless a rule drops INVALID packets")
    };
    assert!(!hedged(&state));
    state.namespaces[0].legacy_tables = vec!["iptables filter".into()];
    assert!(hedged(&state));
    state.namespaces[0].legacy_tables.clear();
    state.namespaces[0].firewall = None;
    assert!(hedged(&state));
}

/// A namespace with `oifname RULE` and one address of eth0.
fn masquerading(out: &str, leased: bool, point_to_point: bool) -> HostState {
    let text = format!(
        "table ip nat {{\nchain POSTROUTING {{\ntype nat hook postrouting priority srcnat; policy \
         accept;\n{out} masquerade # handle 6\n}}\n}}\n"
    );
    let eth0 = Address {
        interface: Some("eth0".into()),
        leased,
        point_to_point,
        ..Address::fixed(address("192.0.2.7:0").ip())
    };
    let firewall = Some(firewall::parse(&text));
    host(vec![Netns { firewall, addresses: Some(vec![eth0]), ..netns(1) }])
}

#[test]
fn masquerading_with_an_address_that_may_change_is_reported_and_with_a_fixed_one_is_not() {
    let found = of_rule(&masquerading("oifname \"eth0\"", true, false), "masquerade");
    assert_eq!((found[0].rank, found[0].cause), (Rank::Info, Some("masquerade_flushed")));
    assert_eq!(
        found[0].reason,
        "connections on the host masqueraded by ip nat POSTROUTING handle 6 break when 192.0.2.7 of eth0 \
         (has a lifetime) is removed or its interface goes down"
    );
    let ids: Vec<_> = found[0].fixes.iter().map(|fix| fix.id).collect();
    assert_eq!(ids, ["keep_the_address", "snat_to_a_fixed_address"]);
    let ranks = |out, leased, other_end| ranks(&masquerading(out, leased, other_end), "masquerade");
    assert_eq!(ranks("oifname \"eth0\"", false, true), [(Rank::Info, 1)]);
    assert_eq!(ranks("oifname \"eth0\"", false, false), []);
}

#[test]
fn only_the_interfaces_of_the_rule_count() {
    let is_reported = |out| !of_rule(&masquerading(out, true, false), "masquerade").is_empty();
    for out in ["", "oifname \"eth*\"", "oifname != \"docker0\""] {
        assert!(is_reported(out), "{out}");
    }
    for out in ["oifname \"ppp0\"", "oifname != \"eth0\"", "oif { \"a\" }"] {
        assert!(!is_reported(out), "{out}");
    }
}

#[test]
fn the_owner_of_a_rule_is_the_program_that_writes_its_chain() {
    let owner = |state: &HostState| of_rule(state, "conntrack_invalid")[0].owner;
    let mut state = with_rules("ct state invalid drop # handle 4");
    assert_eq!(owner(&state), FixOwner::KubeProxy);
    let rename = |state: &mut HostState, name: &str| {
        let rules = &mut state.namespaces[0].firewall.as_mut().expect("rules").invalid;
        rules[0].at.chain.name = name.into();
    };
    rename(&mut state, "cali-FORWARD");
    assert_eq!(owner(&state), FixOwner::Cni);
    rename(&mut state, "mine");
    assert_eq!(owner(&state), FixOwner::Firewall);
}

#[test]
fn a_drop_policy_is_named_and_may_stop_the_segment() {
    let text = "table ip filter {\nchain FORWARD {\ntype filter hook forward priority filter; policy drop;\n}\n}\n";
    let firewall = Some(firewall::parse(text));
    let state = host(vec![Netns { translates: Some(true), firewall, ..netns(1) }]);
    let reason = &of_rule(&state, "conntrack_invalid")[0].reason;
    let expected =
        ", unless the drop policy of ip filter FORWARD stops it because no rule accepts it before";
    assert!(reason.ends_with(expected), "{reason}");
}
