//! A ruleset of Linux 6.18, made by nft 1.0.6 as kube-proxy makes its table, and by iptables-nft 1.8.9: the kernel's
//! netlink messages, and the elements of its sets.

use super::{super::legacy::tests::tables, *};

const DUMP: &str = include_str!("ruleset-6.18.txt");

/// "rule 0200…"
fn messages(kind: &str) -> impl Iterator<Item = Vec<u8>> {
    DUMP.lines().filter_map(move |line| {
        let hex = line.strip_prefix(kind)?.strip_prefix(' ')?;
        let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        (0..hex.len()).step_by(2).map(byte).collect()
    })
}

/// The rules for a packet to `dst`; an error where a message is malformed.
fn of_messages(
    chains: &[Vec<u8>],
    rules: &[Vec<u8>],
    sets: &[Vec<u8>],
    dst: &str,
) -> io::Result<Vec<Rejecting>> {
    let packet = Packet { dst: dst.parse().expect("an address") };
    let (mut all, mut ruleset) = (Rules::default(), Ruleset::default());
    chains.iter().try_for_each(|body| ruleset::chain(body, &mut all))?;
    rules.iter().try_for_each(|body| ruleset::rule(body, &mut all))?;
    sets.iter().try_for_each(|body| ruleset.set(body))?;
    let mut find = |_: u8, _: &str, set: &str, key: &[u8]| {
        if set == "__set0" {
            // Intervals: 22 and 8000 to 8010.
            let port = u16::from_be_bytes([key[0], key[1]]);
            return Ok(
                (port == 22 || (8000..=8010).contains(&port)).then(ruleset::Element::default)
            );
        }
        for body in messages(set) {
            let found = ruleset::elements(&body)?.into_iter().find(|(its, _)| its == key);
            if let Some((_, element)) = found {
                return Ok(Some(element));
            }
        }
        Ok(None)
    };
    Ok(all.rejecting(&mut |rule| ruleset.parts(rule, packet, &mut find)))
}

fn described(list: &[Rejecting]) -> Vec<String> {
    let describe = |it: &Rejecting| {
        let comment = it.comment.as_deref().unwrap_or("-");
        let certain = if it.is_certain { "" } else { ", if" };
        format!("{} {:?} \"{comment}\"{certain}", it.at.with_owner(), it.answer)
    };
    list.iter().map(describe).collect()
}

fn to(dst: &str) -> Vec<String> {
    let [chains, rules, sets] =
        ["chain", "rule", "set"].map(|kind| messages(kind).collect::<Vec<_>>());
    assert_eq!((chains.len(), rules.len(), sets.len()), (11, 16, 4));
    described(&of_messages(&chains, &rules, &sets, dst).expect("valid"))
}

const UNSERVED: &str = "ip kube-proxy cluster-ips-check handle 17 (kube-proxy) Icmp \"Reject traffic to invalid \
                        ports of ClusterIPs\", if";

#[test]
fn a_service_without_endpoints_is_rejected_by_the_element_of_kube_proxys_map() {
    let without = "ip kube-proxy reject-chain handle 13 (kube-proxy) Icmp \"default/api:http\", if"
        .to_owned();
    assert_eq!(to("10.96.0.5:80"), [without, UNSERVED.to_owned()]);
}

#[test]
fn a_port_that_a_cluster_ip_does_not_serve_is_rejected_and_a_served_one_is_not() {
    assert_eq!(to("10.96.0.6:81"), [UNSERVED]);
    assert_eq!(to("10.96.0.6:80"), [""; 0]);
}

#[test]
fn ports_addresses_intervals_and_earlier_verdicts_decide() {
    let mine = ["inet other input handle 3 Reset \"mine\""];
    assert_eq!(to("192.0.2.5:22"), mine);
    assert_eq!(to("192.0.2.9:8005"), mine);
    assert_eq!(to("192.0.2.5:23"), [""; 0]);
    assert_eq!(to("192.0.3.5:22"), [""; 0]);
    assert_eq!(to("192.0.2.1:443"), [""; 0], "accepted before");
    assert_eq!(to("192.0.2.1:53"), [""; 0], "not for TCP");
    assert_eq!(to("192.0.2.9:81"), ["inet other input handle 7 Icmp \"-\", if"]);
    assert_eq!(to("192.0.2.9:80"), [""; 0]);
    assert_eq!(to("[2001:db8::1]:22"), [""; 0]);
}

#[test]
fn a_rule_of_iptables_nft_has_its_comment() {
    assert_eq!(to("10.96.0.7:80"), ["ip filter FORWARD handle 2 Icmp \"x has no endpoints\""]);
    assert_eq!(to("10.96.0.7:81"), [""; 0]);
}

#[test]
fn a_message_that_is_cut_anywhere_causes_no_panic() {
    let chains: Vec<_> = messages("chain").collect();
    let sets: Vec<_> = messages("set").collect();
    for body in messages("rule") {
        for cut in 0..body.len() {
            let _ = of_messages(&chains, &[body[..cut].to_vec()], &sets, "192.0.2.5:22");
        }
    }
    for body in messages("no-endpoint-services") {
        (0..body.len()).for_each(|cut| drop(ruleset::elements(&body[..cut])));
    }
    for body in messages("chain").chain(messages("set")) {
        for cut in 0..body.len() {
            let body = body[..cut].to_vec();
            let _ = of_messages(
                std::slice::from_ref(&body),
                &[],
                std::slice::from_ref(&body),
                "192.0.2.5:22",
            );
        }
    }
}

fn by_legacy(dst: &str) -> Vec<String> {
    let packet = Packet { dst: dst.parse().expect("an address") };
    let mut rules = Rules::default();
    for (layout, table, info, block) in tables() {
        legacy::for_packet::add(&layout, &table, &info, &block, packet, &mut rules).expect("valid");
    }
    described(&rules.rejecting(&mut |_| Ok(Vec::new())))
}

#[test]
fn rules_of_iptables_legacy_reject_by_address_and_port() {
    let invalid = "iptables filter INPUT rule 2 Reset \"-\", if".to_owned();
    let without = "iptables filter KUBE-SERVICES rule 1 (kube-proxy) Icmp \"default/api:http has no endpoints\", if";
    assert_eq!(by_legacy("10.96.0.5:80"), [invalid.clone(), without.to_owned()]);
    assert_eq!(by_legacy("192.0.2.1:80"), [invalid.as_str()]);
    let ports = "iptables filter INPUT rule 3 Reset \"-\"".to_owned();
    for port in [8080, 9000, 9050, 9100] {
        assert_eq!(
            by_legacy(&format!("10.1.2.3:{port}")),
            [invalid.clone(), ports.clone()],
            "{port}"
        );
    }
    assert_eq!(by_legacy("10.1.2.3:8999"), [invalid.as_str()]);
    let v6 = "ip6tables filter FORWARD rule 1 Reset \"-\", if".to_owned();
    let of_address = "ip6tables filter OUTPUT rule 1 Icmp \"-\"".to_owned();
    assert_eq!(by_legacy("[fd00::5]:443"), [v6.clone(), of_address]);
    assert_eq!(by_legacy("[fd00::6]:443"), [v6]);
}
