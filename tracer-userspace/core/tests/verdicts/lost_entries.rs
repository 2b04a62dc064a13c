//! Lost IPVS and conntrack entries, in streams that once gave a wrong verdict.

use rsttrace_core::{
    correlator::Correlator,
    event::{Body, Event},
    testing::{flow, *},
};
use rsttrace_model::{
    conntrack::{ConntrackState, ConntrackTcpTimeouts},
    flow::Nanos,
    ipvs::{IpvsDestination, IpvsService, IpvsState},
    netns::NetnsState,
};

fn service(ts: Nanos, proto: u8) -> Event {
    let destinations =
        vec![IpvsDestination { ip: address(SERVER).ip(), port: 3306, weight: 1, forward: 0 }];
    let service = IpvsService {
        ip: address(VIP).ip(),
        port: 3306,
        fwmark: 0,
        protocol: proto,
        scheduler: "rr".into(),
        destinations,
    };
    let ipvs = IpvsState {
        timeout_tcp_s: Some(900),
        services: Some(vec![service]),
        ..IpvsState::default()
    };
    let state = NetnsState { inum: NODE_NS, ipvs: Some(ipvs), ..NetnsState::default() };
    at(ts, NODE_NS, Body::Netns(Box::new(state)))
}

#[test]
fn a_module_loaded_later_does_not_make_an_earlier_expiry_unseen() {
    let mut c = Correlator::new();
    c.push(session(1));
    // nf_reject_ipv4 is loaded at 990 s, so `live` sends the session again.
    c.push(session(990 * SECOND));
    c.push(sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    c.push(service(1000 * SECOND, 6));
    c.push(received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 50 * SECOND)));
    assert_ne!(causes(&c.finish()), ["ipvs_idle_expired"]);
}

#[test]
fn the_loss_of_an_equal_tuple_in_another_namespace_does_not_explain_a_reset() {
    let end = Event { netns: 99, ..ipvs_ended(930 * SECOND, ipvs_end(900.0)) };
    let mut ev = article();
    ev[0] = end;
    let i = replay(ev);
    assert_ne!(causes(&i), ["ipvs_idle_expired"]);
}

#[test]
fn without_a_local_socket_the_newest_loss_is_assumed() {
    let i = replay([
        ipvs_ended(100 * SECOND, ipvs_end(900.0)),
        conntrack_ended(900 * SECOND, conntrack_end(5000 * SECOND, 4711)),
        sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))),
    ]);
    assert_eq!(causes(&i), ["conntrack_deleted"]);
}

#[test]
fn without_a_local_socket_the_verdict_states_its_assumption() {
    let i = replay([
        ipvs_ended(100 * SECOND, ipvs_end(900.0)),
        sent(100_000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))),
    ]);
    let x = &i[0];
    assert!(
        x.prove.is_some()
            || x.why.contains("newest")
            || x.evidence.iter().any(|f| f.summary.contains("newest"))
    );
}

#[test]
fn a_plain_conntrack_entry_does_not_hide_the_nat_entry() {
    let mut plain = conntrack_end(99 * SECOND, 0);
    plain.status = 0xe;
    plain.reply = flow(VIP, CLIENT);
    let plain = at(99 * SECOND, CLIENT_NS, Body::ConntrackEnd(Box::new(plain)));
    let server = socket(2, SERVER, CLIENT, 10 * SECOND);
    let mut segment = data(SERVER, CLIENT);
    (segment.seq, segment.ack) = (9000, 5000);
    let mut victim = server;
    (victim.snd_nxt, victim.rcv_nxt) = (9043, 5000);
    let i = replay([
        plain,
        conntrack_ended(100 * SECOND, conntrack_end(500 * SECOND, 4711)),
        sent(101 * SECOND, CLIENT_NS, no_socket(segment)),
        received(101 * SECOND + 1, SERVER_NS, victim),
    ]);
    assert_eq!(causes(&i), ["conntrack_deleted"]);
}

#[test]
fn an_entry_that_ended_for_an_unsupported_reason_is_unknown() {
    let mut end = ipvs_end(900.0);
    end.forced = true;
    let mut ev = article();
    ev[0] = ipvs_ended(930 * SECOND, end);
    let i = replay(ev);
    assert_eq!(causes(&i), ["unknown"]);
}

#[test]
fn a_limit_that_had_not_been_reached_is_not_named() {
    let t = ConntrackTcpTimeouts {
        established_s: Some(3600),
        unacknowledged_s: Some(300),
        max_retrans_s: Some(300),
        ..Default::default()
    };
    let state = NetnsState {
        inum: NODE_NS,
        conntrack: Some(ConntrackState { tcp_timeout: t, ..Default::default() }),
        ..Default::default()
    };
    // Received at 0 s; the client's segment at 3000 s was never acknowledged, so the deadline is
    // 3300 s.
    let mut srv = socket(2, SERVER, CLIENT, 1);
    (srv.snd_nxt, srv.rcv_nxt) = (9043, 5000);
    let mut segment = data(SERVER, CLIENT);
    (segment.seq, segment.ack) = (9000, 5000);
    let i = replay([
        conntrack_ended(3400 * SECOND, conntrack_end(3300 * SECOND, 0)),
        sent(3400 * SECOND + 1, CLIENT_NS, no_socket(segment)),
        at(3400 * SECOND + 1, NODE_NS, Body::Netns(Box::new(state))),
        received(3400 * SECOND + 2, SERVER_NS, srv),
    ]);
    assert_eq!(
        i[0].conntrack.as_ref().expect("a fact").limit_s,
        Some(300.0),
        "3600 s cannot have passed 3300 s after the last segment"
    );
}

#[test]
fn of_equal_limits_the_limit_of_the_state_is_named() {
    let t = ConntrackTcpTimeouts {
        established_s: Some(300),
        unacknowledged_s: Some(300),
        max_retrans_s: Some(300),
        ..Default::default()
    };
    let state = NetnsState {
        inum: NODE_NS,
        conntrack: Some(ConntrackState { tcp_timeout: t, ..Default::default() }),
        ..Default::default()
    };
    let srv = socket(2, SERVER, CLIENT, SECOND);
    let i = replay([
        conntrack_ended(400 * SECOND, conntrack_end(301 * SECOND, 0)),
        sent(400 * SECOND + 1, CLIENT_NS, no_socket(data(SERVER, CLIENT))),
        at(400 * SECOND + 1, NODE_NS, Body::Netns(Box::new(state))),
        received(400 * SECOND + 2, SERVER_NS, srv),
    ]);
    assert!(i[0].message().contains("timeout_established = 300"), "{}", i[0].message());
}

#[test]
fn nothing_is_inferred_without_an_idle_time() {
    let day = 86_400 * SECOND;
    let i = replay([sent(3 * day, NODE_NS, no_socket(data(CLIENT, VIP))), service(3 * day, 6)]);
    assert_ne!(causes(&i), ["ipvs_idle_expired"]);
}

#[test]
fn a_udp_service_does_not_explain_a_tcp_reset() {
    let mut c = Correlator::new();
    c.push(session(980 * SECOND));
    c.push(sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    c.push(service(1000 * SECOND, 17));
    c.push(received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 27 * SECOND)));
    assert_ne!(causes(&c.finish()), ["ipvs_idle_expired"]);
}

#[test]
fn an_entry_that_ended_before_its_time_did_not_expire() {
    let i = replay([
        ipvs_ended(930 * SECOND, ipvs_end(900.0)),
        sent(930 * SECOND + 300_000_000, NODE_NS, no_socket(data(CLIENT, VIP))),
        received(
            930 * SECOND + 300_050_000,
            CLIENT_NS,
            socket(1, CLIENT, VIP, 929 * SECOND + 900_000_000),
        ),
    ]);
    assert_ne!(causes(&i), ["ipvs_idle_expired"]);
}

#[test]
fn direct_routing_has_no_nat_side() {
    let mut end = ipvs_end(900.0);
    end.flags = 3; // IP_VS_CONN_F_DROUTE: the destination address stays the VIP
    let mut ev = article();
    ev[0] = ipvs_ended(930 * SECOND, end);
    assert_eq!(replay(ev)[0].destination_nat, None);
}

/// A new entry forwarded the packet to the same server as before, which has lost the connection.
#[test]
fn a_lost_entry_is_not_the_cause_when_the_packet_was_translated_as_before() {
    const SERVERLESS: [&str; 2] = ["socket_gone", "wrong_backend"];
    let victim = || received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 50 * SECOND));
    for loss in [
        conntrack_ended(990 * SECOND, conntrack_end(5000 * SECOND, 4711)),
        conntrack_ended(990 * SECOND, conntrack_end(989 * SECOND, 0)),
        ipvs_ended(990 * SECOND, ipvs_end(900.0)),
    ] {
        for answer in [no_socket(data(CLIENT, SERVER)), at_listener(data(CLIENT, SERVER))] {
            let incidents =
                replay([loss.clone(), sent(1000 * SECOND, SERVER_NS, answer), victim()]);
            assert_eq!(incidents.len(), 1);
            assert!(SERVERLESS.contains(&incidents[0].cause.id), "{:?}", causes(&incidents));
            assert_eq!(incidents[0].destination, address(VIP));
            assert_eq!(incidents[0].destination_nat, Some(address(SERVER)));
        }
        // Another server received the packet because of the loss.
        let elsewhere = no_socket(data(CLIENT, "10.0.1.3:3306"));
        let incidents = replay([loss, sent(1000 * SECOND, SERVER_NS, elsewhere), victim()]);
        assert!(!SERVERLESS.contains(&incidents[0].cause.id), "{:?}", causes(&incidents));
    }
}
