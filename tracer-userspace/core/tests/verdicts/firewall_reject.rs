//! Rules that answer or drop: behind NAT, in mid-stream, from a module that was just loaded, or because an entry was missing.

use rsttrace_core::{
    event::{
        Body, ConntrackEnd, DropReason, Event, FilteredFlow, NatTuples, Packet, PacketEntry,
        PlainEnd, ResetSent, RuleDrop, Session, Socket, Via,
    },
    fix::FixOwner,
    incident::Incident,
    testing::*,
    verdict::Confidence,
};
use rsttrace_model::{
    firewall::{FilterRules, RejectingRule, RejectingRules, RuleOwner},
    tcp_flag, tcp_state,
};

const NOW: u64 = 1000 * SECOND;
const MILLISECOND: u64 = 1_000_000;

fn syn(src: &str, dst: &str) -> Packet {
    Packet { flags: tcp_flag::SYN, ack: 0, payload: 0, ..data(src, dst) }
}

/// A connect from CLIENT to VIP that is refused.
fn refused(ts: u64) -> Event {
    let mut connecting = socket(1, CLIENT, VIP, 0);
    (connecting.state, connecting.last_received, connecting.rcv_nxt) =
        (tcp_state::SYN_SENT, None, 0);
    (connecting.bytes_sent, connecting.bytes_received) = (0, 0);
    failed(ts, CLIENT_NS, connecting, 111, &["tcp_v4_err"])
}

/// A rule rejects a packet of CLIENT to VIP that NAT has already given to SERVER.
fn behind_nat(ts: u64, packet: Packet) -> Event {
    let mut rule = rule_reject(ts, packet);
    if let Body::PacketDrop(drop) = &mut rule.body
        && let DropReason::Rejected { nat, .. } = &mut drop.why
    {
        *nat = Some(NatTuples { original: flow(CLIENT, VIP), reply: flow(SERVER, CLIENT) });
    }
    rule
}

/// CLIENT's connection when it times out, after three retransmissions: the first came after 0.2 s, and each
/// other after twice the wait before, 3 s in total.
fn client(err_soft: u32) -> Socket {
    Socket { retransmits: 3, err_soft, ..socket(1, CLIENT, VIP, 990 * SECOND) }
}

fn only(incidents: &[Incident]) -> &Incident {
    assert_eq!(incidents.len(), 1, "{:?}", causes(incidents));
    &incidents[0]
}

#[test]
fn a_syn_rejected_behind_dnat_was_not_refused_by_a_closed_port() {
    let incidents = replay([behind_nat(NOW - MILLISECOND, syn(CLIENT, VIP)), refused(NOW)]);
    let found = only(&incidents);
    assert_eq!((found.cause.id, found.confidence), ("firewall_reject", Some(Confidence::Observed)));
    assert_eq!(found.destination, address(VIP));
    assert_eq!(found.destination_nat, Some(address(SERVER)));
}

#[test]
fn an_answer_rejected_behind_dnat_belongs_to_the_connection_of_its_client() {
    let answer = Packet { flags: tcp_flag::SYN | tcp_flag::ACK, ..data(SERVER, CLIENT) };
    let incidents = replay([behind_nat(NOW - MILLISECOND, answer), refused(NOW)]);
    assert_eq!(causes(&incidents), ["firewall_reject"]);
}

#[test]
fn a_rule_added_while_the_peer_did_not_answer_is_named_and_is_not_the_cause() {
    for (err, user_timeout_ms, cause) in
        [(110, 0, "retransmission_timeout"), (110, 3000, "user_timeout")]
    {
        let client = Socket { user_timeout_ms, ..client(0) };
        let gave_up = failed(NOW, CLIENT_NS, client, err, &["tcp_write_timer"]);
        let with_rule_since = |ts| replay([behind_nat(ts, data(CLIENT, VIP)), gave_up.clone()]);
        let early = with_rule_since(NOW - 3 * SECOND);
        assert_eq!(causes(&early), ["firewall_reject"]);
        let late = with_rule_since(NOW - SECOND);
        let found = only(&late);
        assert_eq!(found.cause.id, cause);
        assert_eq!(found.fixes[0].id, "change_the_rule");
        let names_it =
            |it: &rsttrace_core::verdict::Finding| it.summary.contains("nftables reject rule");
        assert!(found.evidence.iter().any(names_it), "{:?}", found.evidence);
    }
}

#[test]
fn a_rule_is_the_cause_also_when_a_host_unreachable_error_shortens_the_waits() {
    let gave_up = failed(NOW, CLIENT_NS, client(113), 113, &["tcp_write_timer"]);
    let rule = rule_reject(NOW - SECOND, data(CLIENT, VIP));
    assert_eq!(causes(&replay([rule, gave_up])), ["firewall_reject"]);
}

#[test]
fn a_rule_is_the_cause_also_when_it_rejects_later_answers_of_the_failed_end() {
    let late_answer = Packet { flags: 4, payload: 0, ..data(CLIENT, VIP) };
    let found = replay([
        behind_nat(NOW - 3 * SECOND, data(CLIENT, VIP)),
        failed(NOW, CLIENT_NS, client(111), 111, &["tcp_write_timer"]),
        behind_nat(NOW + SECOND / 10, late_answer),
    ]);
    assert_eq!(only(&found).cause.id, "firewall_reject");
    assert!(found[0].evidence.iter().any(|it| it.summary.contains("3.0 s earlier")));
    assert_eq!(found[0].destination_nat, Some(address(SERVER)));
}

/// The tracer's coverage after nf_reject_ipv4 was loaded: hooked, or attaching.
fn module_loaded(ts: u64, hooked: bool) -> Event {
    let Event { netns, body: Body::Session(base), .. } = session(ts) else {
        unreachable!("the literal is a session");
    };
    let mut coverage = base.coverage.clone();
    let firewall = coverage[0].clone();
    coverage.push(rsttrace_core::event::SignalCoverage {
        id: "firewall_reset".into(),
        way: firewall.way.filter(|_| hooked),
        blind: None,
        attaching: !hooked,
    });
    at(ts, netns, Body::Session(Box::new(Session { coverage, ..*base })))
}

#[test]
fn a_connect_refused_while_a_firewall_module_is_loaded_is_not_benign() {
    let attaching_event = module_loaded(NOW + MILLISECOND, false);
    let found = replay([refused(NOW), attaching_event.clone()]);
    assert_eq!(causes(&found), ["unknown"]);
    assert!(only(&found).why.contains("firewall module"), "{}", found[0].why);
    let hooked = module_loaded(NOW + 2 * MILLISECOND, true);
    assert_eq!(
        causes(&replay([refused(NOW), attaching_event.clone(), hooked.clone()])),
        ["unknown"]
    );
    let later = refused(NOW + SECOND);
    assert_eq!(causes(&replay([attaching_event, hooked, later])), ["connection_refused"]);
}

/// A rule resets data of CLIENT to SERVER, for which conntrack had `entry`.
fn reset_by_rule(ts: u64, entry: PacketEntry) -> [Event; 2] {
    let stack = stack(&["nf_send_reset", "nft_reject_inet_eval", "nft_do_chain"]);
    let answer = ResetSent { via: Via::Netfilter, entry, stack, ..no_socket(data(CLIENT, SERVER)) };
    [
        sent(ts, NODE_NS, answer),
        received(ts, CLIENT_NS, socket(1, CLIENT, SERVER, ts - 400 * SECOND)),
    ]
}

/// The kernel kept the end of CLIENT's entry to SERVER, which translated nothing.
fn kept(ts: u64, ended: u64, since: u64) -> Event {
    let (original, reply) = (flow(CLIENT, SERVER), flow(SERVER, CLIENT));
    let end = ConntrackEnd { original, reply, status: 1 << 3, ..conntrack_end(ended, 0) };
    let ends = match ended {
        0 => Vec::new(),
        ts => vec![PlainEnd { ts, netns: NODE_NS, end }],
    };
    let found = FilteredFlow { flow: original, ends, ends_since: Some(since), drops: Vec::new() };
    at(ts, 1, Body::FilteredFlow(Box::new(found)))
}

fn rules(ts: u64, stateful: Option<bool>) -> Event {
    at(ts, NODE_NS, Body::FilterRules(Box::new(FilterRules { stateful })))
}

fn rejected_after_loss(entry: PacketEntry, stateful: Option<bool>, ended: u64) -> Incident {
    let [reset, victim] = reset_by_rule(NOW, entry);
    let events = [session(SECOND), reset, kept(NOW, ended, 0), rules(NOW, stateful), victim];
    replay(events).remove(0)
}

#[test]
fn a_stateful_rule_yields_to_the_expiry_of_the_entry_that_it_needs() {
    for entry in [PacketEntry::Made, PacketEntry::None] {
        let found = rejected_after_loss(entry, Some(true), NOW - 10 * SECOND);
        assert_eq!(found.cause.id, "conntrack_idle_expired");
        assert_eq!(found.confidence, Some(Confidence::Observed));
        assert!(found.evidence.iter().any(|it| it.kind == "rule_without_entry"));
    }
}

#[test]
fn an_expired_entry_that_no_rule_needs_explains_nothing() {
    let lost = NOW - 10 * SECOND;
    for (entry, stateful, ended) in [
        // No rule tests the state, or whether one does is not known.
        (PacketEntry::Made, Some(false), lost),
        (PacketEntry::Made, None, lost),
        // The rejected packet had its entry.
        (PacketEntry::Existed, Some(true), lost),
        (PacketEntry::Unknown, Some(true), lost),
        // The client was answered after the end of the entry.
        (PacketEntry::Made, Some(true), NOW - 500 * SECOND),
    ] {
        let found = rejected_after_loss(entry, stateful, ended);
        assert_eq!(found.cause.id, "firewall_reject", "{entry:?} {stateful:?} {ended}");
    }
}

#[test]
fn a_reject_without_an_entry_says_so_where_its_end_may_be_forgotten() {
    let judged = |since| {
        let [reset, victim] = reset_by_rule(NOW, PacketEntry::Made);
        let events = [reset, kept(NOW, 0, since), rules(NOW, Some(true)), victim];
        replay(events).remove(0)
    };
    let (forgotten, complete) = (judged(NOW - SECOND), judged(NOW - 900 * SECOND));
    assert_eq!((forgotten.cause.id, complete.cause.id), ("firewall_reject", "firewall_reject"));
    assert!(forgotten.prove.is_some() && complete.prove.is_none());
}

#[test]
fn packets_that_a_rule_drops_without_an_answer_name_the_rules_owner_in_the_first_fix() {
    let timed_out = || failed(NOW, CLIENT_NS, client(0), 110, &["tcp_retransmit_timer"]);
    let drop = |last| RuleDrop {
        flow: flow(CLIENT, VIP),
        first: last,
        last,
        count: 4,
        netns: NODE_NS,
        entry: PacketEntry::Existed,
    };
    let judged = |last| {
        let drops = vec![drop(last)];
        let found =
            FilteredFlow { flow: flow(CLIENT, VIP), ends: Vec::new(), ends_since: None, drops };
        replay([timed_out(), at(NOW, 1, Body::FilteredFlow(Box::new(found)))]).remove(0)
    };
    let found = judged(NOW - SECOND);
    assert_eq!(found.cause.id, "retransmission_timeout");
    assert_eq!(found.fixes[0].id, "change_the_drop_rule");
    assert!(found.evidence.iter().any(|it| it.summary.contains("dropped 4 packets")));
    // Before the client was last answered, it was another connection.
    let earlier = judged(NOW - 500 * SECOND);
    assert_ne!(earlier.fixes[0].id, "change_the_drop_rule");
}

#[test]
fn a_connect_that_rules_of_kube_proxy_alone_can_reject_had_no_backend() {
    let judged = |owners: &[Option<RuleOwner>]| {
        let rule = |owner: &Option<RuleOwner>| RejectingRule {
            at: "ip kube-proxy reject-chain handle 4".into(),
            owner: *owner,
            comment: Some("shop/db has no endpoints".into()),
        };
        let rules = RejectingRules { dst: address(VIP), rules: owners.iter().map(rule).collect() };
        let rejected = rule_reject(NOW - MILLISECOND, syn(CLIENT, VIP));
        let read = at(NOW - MILLISECOND, NODE_NS, Body::RejectingRules(Box::new(rules)));
        replay([rejected, read, refused(NOW)]).remove(0)
    };
    let kube_proxy = Some(RuleOwner::KubeProxy);
    let found = judged(&[kube_proxy, kube_proxy]);
    assert_eq!((found.cause.id, found.confidence), ("no_backend", Some(Confidence::Observed)));
    assert!(found.why.contains("shop/db has no endpoints"), "{}", found.why);
    assert_eq!(found.fixes[0].owner, FixOwner::KubeProxy);
    for others in [&[kube_proxy, None][..], &[Some(RuleOwner::Calico)], &[]] {
        assert_eq!(judged(others).cause.id, "firewall_reject", "{others:?}");
    }
}
