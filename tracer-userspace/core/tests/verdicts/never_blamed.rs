//! Streams that once gave a wrong verdict; each test claims that its kind no longer does.

use rsttrace_core::{
    correlator::Correlator,
    event::{Body, Event},
    testing::{flow, *},
    verdict::Confidence,
};
use rsttrace_model::{
    conntrack::{ConntrackState, ConntrackTcpTimeouts},
    flow::Nanos,
    ipvs::{IpvsDestination, IpvsService, IpvsState},
    netns::NetnsState,
    tcp_flag, tcp_state,
};

fn syn(a: &str, b: &str) -> rsttrace_core::event::Packet {
    let mut p = data(a, b);
    (p.flags, p.ack, p.payload) = (tcp_flag::SYN, 0, 0);
    p
}
fn connecting() -> rsttrace_core::event::Socket {
    let mut s = socket(1, CLIENT, VIP, 0);
    s.state = tcp_state::SYN_SENT;
    (s.last_received, s.rcv_nxt) = (None, 0);
    (s.bytes_sent, s.bytes_received) = (0, 0);
    s
}
fn rstack(ts: Nanos, ns: u32, s: rsttrace_core::event::Socket) -> Event {
    let mut e = received(ts, ns, s);
    if let Body::ResetReceived(r) = &mut e.body {
        r.packet.as_mut().expect("set by the literal").flags = 4 | 16;
    }
    e
}
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
fn a_module_loaded_later_does_not_make_old_state_unseen() {
    let mut c = Correlator::new();
    c.push(session(1));
    // nf_reject_ipv4 is loaded at 990 s: live pushes the session again
    c.push(session(990 * SECOND));
    c.push(sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    c.push(service(1000 * SECOND, 6));
    c.push(received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 50 * SECOND)));
    assert_ne!(causes(&c.finish()), ["ipvs_idle_expired"]);
}

#[test]
fn a_syn_timeout_does_not_blame_the_ipvs_entry_of_an_earlier_connection() {
    let i = replay([
        ipvs_ended(930 * SECOND, ipvs_end(900.0)),
        failed(1000 * SECOND, CLIENT_NS, connecting(), 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}

#[test]
fn a_syn_timeout_does_not_blame_the_nat_entry_of_an_earlier_connection() {
    let mut s = connecting();
    s.state = tcp_state::CLOSE;
    let i = replay([
        conntrack_ended(930 * SECOND, conntrack_end(5000 * SECOND, 4711)),
        failed(1000 * SECOND, CLIENT_NS, s, 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}

#[test]
fn an_old_dropped_syn_does_not_swallow_a_later_expiry() {
    let i = replay([
        full_drop(10 * SECOND, syn(CLIENT, VIP)),
        ipvs_ended(4930 * SECOND, ipvs_end(900.0)),
        sent(5000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))),
    ]);
    assert_eq!(causes(&i), ["conntrack_table_full", "ipvs_idle_expired"]);
}

#[test]
fn an_old_dropped_syn_does_not_swallow_a_later_expiry_after_much_payload() {
    let mut d = data(CLIENT, VIP);
    d.seq = 9_000_000;
    let i = replay([
        full_drop(10 * SECOND, syn(CLIENT, VIP)),
        ipvs_ended(4930 * SECOND, ipvs_end(900.0)),
        sent(5000 * SECOND, NODE_NS, no_socket(d)),
    ]);
    assert_eq!(causes(&i), ["conntrack_table_full", "ipvs_idle_expired"]);
}

#[test]
fn a_connect_refused_after_a_dropped_syn_is_benign() {
    let mut ans = rstack(11 * SECOND + 1, CLIENT_NS, connecting());
    if let Body::ResetReceived(r) = &mut ans.body {
        let p = r.packet.as_mut().expect("set by the literal");
        p.seq = 0;
        p.ack = 5001;
    }
    let i = replay([
        full_drop(10 * SECOND, syn(CLIENT, VIP)),
        sent(11 * SECOND, NODE_NS, no_socket(syn(CLIENT, VIP))),
        ans,
        failed(11 * SECOND + 2, CLIENT_NS, connecting(), 111, &["tcp_reset"]),
    ]);
    assert_eq!(causes(&i), ["conntrack_table_full", "connection_refused"]);
}

#[test]
fn an_equal_tuple_lost_in_another_namespace_explains_nothing() {
    let end = Event { netns: 99, ..ipvs_ended(930 * SECOND, ipvs_end(900.0)) };
    let mut ev = article();
    ev[0] = end;
    let i = replay(ev);
    assert_ne!(causes(&i), ["ipvs_idle_expired"]);
}

#[test]
fn without_a_local_socket_the_newest_loss_is_taken() {
    let i = replay([
        ipvs_ended(100 * SECOND, ipvs_end(900.0)),
        conntrack_ended(900 * SECOND, conntrack_end(5000 * SECOND, 4711)),
        sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))),
    ]);
    assert_eq!(causes(&i), ["conntrack_deleted"]);
}

#[test]
fn without_a_local_socket_the_verdict_says_so() {
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
    let mut stray = data(SERVER, CLIENT);
    (stray.seq, stray.ack) = (9000, 5000);
    let mut hurt = server;
    (hurt.snd_nxt, hurt.rcv_nxt) = (9043, 5000);
    let i = replay([
        plain,
        conntrack_ended(100 * SECOND, conntrack_end(500 * SECOND, 4711)),
        sent(101 * SECOND, CLIENT_NS, no_socket(stray)),
        received(101 * SECOND + 1, SERVER_NS, hurt),
    ]);
    assert_eq!(causes(&i), ["conntrack_deleted"]);
}

#[test]
fn an_entry_lost_in_a_way_no_cause_knows_is_unknown() {
    let mut end = ipvs_end(900.0);
    end.forced = true;
    let mut ev = article();
    ev[0] = ipvs_ended(930 * SECOND, end);
    let i = replay(ev);
    assert_eq!(causes(&i), ["unknown"]);
}

#[test]
fn a_limit_that_would_still_be_running_is_not_named() {
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
    // heard at 0 s; the client's segment at 3000 s was never acknowledged: deadline 3300 s
    let mut srv = socket(2, SERVER, CLIENT, 1);
    (srv.snd_nxt, srv.rcv_nxt) = (9043, 5000);
    let mut stray = data(SERVER, CLIENT);
    (stray.seq, stray.ack) = (9000, 5000);
    let i = replay([
        conntrack_ended(3400 * SECOND, conntrack_end(3300 * SECOND, 0)),
        sent(3400 * SECOND + 1, CLIENT_NS, no_socket(stray)),
        at(3400 * SECOND + 1, NODE_NS, Body::Netns(Box::new(state))),
        received(3400 * SECOND + 2, SERVER_NS, srv),
    ]);
    assert_eq!(
        i[0].conntrack.as_ref().expect("a fact").limit_s,
        Some(300.0),
        "3600 s cannot have run out 3300 s after the last segment"
    );
}

#[test]
fn of_equal_limits_the_state_s_own_is_named() {
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
fn a_udp_service_explains_no_tcp_reset() {
    let mut c = Correlator::new();
    c.push(session(980 * SECOND));
    c.push(sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    c.push(service(1000 * SECOND, 17));
    c.push(received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 27 * SECOND)));
    assert_ne!(causes(&c.finish()), ["ipvs_idle_expired"]);
}

#[test]
fn a_stray_packet_at_a_busy_listener_is_no_overflow() {
    let mut a = at_listener(data(CLIENT, "10.0.1.3:3306"));
    let l = a.socket.as_mut().expect("set by the literal");
    (l.ack_backlog, l.max_ack_backlog) = (129, 128);
    let i = replay([
        ipvs_ended(930 * SECOND, ipvs_end(900.0)),
        sent(1000 * SECOND, SERVER_NS, a),
        received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 27 * SECOND)),
    ]);
    assert_eq!(causes(&i), ["ipvs_idle_expired"]);
}

#[test]
fn a_timers_bystander_is_not_blamed() {
    let mut s = socket(5, SERVER, CLIENT, 990 * SECOND);
    (s.snd_nxt, s.rcv_nxt, s.linger2_negative, s.dead) = (9000, 5000, true, true);
    let mut a = active(
        s,
        &["tcp_send_active_reset", "tcp_keepalive_timer", "call_timer_fn", "__do_softirq"],
        "TCP_STATE",
    );
    a.task = task("python3", 165);
    let i = replay([sent(1000 * SECOND, SERVER_NS, a)]);
    assert!(!i[0].message().contains("python3"), "{}", i[0].message());
}

#[test]
fn syns_that_ran_out_are_no_user_timeout() {
    let mut s = connecting();
    s.user_timeout_ms = 1_800_000;
    s.retransmits = 6;
    let i = replay([failed(137 * SECOND, CLIENT_NS, s, 110, &["tcp_retransmit_timer"])]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}

#[test]
fn a_peer_that_answers_with_a_closed_window_is_not_a_lost_path() {
    let gave_up = |snd_wnd, probes_out| {
        let waiting = rsttrace_core::event::Socket {
            user_timeout_ms: 3000,
            snd_wnd,
            probes_out,
            ..socket(1, CLIENT, VIP, 27 * SECOND)
        };
        let i =
            replay([failed(30 * SECOND, CLIENT_NS, waiting, 110, &["tcp_write_timer_handler"])]);
        assert_eq!(causes(&i), ["user_timeout"]);
        (i[0].message().contains("window closed"), i[0].fixes[0].id)
    };
    assert_eq!(gave_up(0, 0), (true, "keep_reading"));
    assert_eq!(gave_up(0, 3), (false, "restore_the_path"), "the probes went unanswered");
    assert_eq!(gave_up(65535, 0), (false, "restore_the_path"));
}

#[test]
fn a_stray_segment_after_the_reset_does_not_explain_it() {
    let i = replay([
        session(980 * SECOND),
        received(1000 * SECOND, CLIENT_NS, socket(1, CLIENT, SERVER, 27 * SECOND)),
        sent(1000 * SECOND + SECOND / 5, CLIENT_NS, no_socket(data(SERVER, CLIENT))),
    ]);
    assert_eq!(causes(&i), ["unknown"]);
    assert!(!i[0].message().contains("does not know"), "{}", i[0].message());
}

#[test]
fn a_repeated_inference_keeps_its_test() {
    let mut c = Correlator::new();
    c.push(session(980 * SECOND));
    c.push(sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    c.push(service(1000 * SECOND, 6));
    c.push(received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 27 * SECOND)));
    let mut all = c.tick(1001 * SECOND);
    // the server's own view is by its address; IPVS DR: same tuple
    let mut srv = socket(2, VIP, CLIENT, 27 * SECOND);
    (srv.snd_una, srv.snd_nxt, srv.rcv_nxt) = (9000, 9000, 5000);
    c.push(failed(3000 * SECOND, SERVER_NS, srv, 110, &["tcp_keepalive_timer"]));
    all.extend(c.finish());
    assert_eq!(causes(&all), ["ipvs_idle_expired", "+ipvs_idle_expired"]);
    assert_eq!(all[1].confidence, Some(Confidence::Inferred));
    assert!(
        all[1].prove.is_some(),
        "inferred needs prove; evidence kinds {:?}",
        all[1].evidence.iter().map(|f| f.kind).collect::<Vec<_>>()
    );
}

#[test]
fn a_repeat_does_not_take_over_another_causes_test() {
    let server = socket(2, SERVER, CLIENT, 10 * SECOND);
    let mut stray = data(SERVER, CLIENT);
    (stray.seq, stray.ack) = (9000, 5000);
    let mut hurt = server.clone();
    (hurt.snd_nxt, hurt.rcv_nxt) = (9043, 5000);
    let late = 400 * SECOND;
    let i = replay([
        conntrack_ended(100 * SECOND, conntrack_end(500 * SECOND, 4711)),
        sent(101 * SECOND, CLIENT_NS, no_socket(stray)),
        received(101 * SECOND + 1, SERVER_NS, hurt),
        // the client got an answer on the still open socket at 150 s (keepalive through a new entry), so the loss no longer fits it
        sent(late, SERVER_NS, at_listener(data(CLIENT, SERVER))),
        received(late + 1, CLIENT_NS, socket(1, CLIENT, VIP, 150 * SECOND)),
    ]);
    assert!(i[1].prove.is_none());
}

#[test]
fn an_abandoned_connect_is_no_incident() {
    let mut s = connecting();
    s.flow = flow("0.0.0.0:41822", "0.0.0.0:0");
    s.state = tcp_state::CLOSE;
    s.linger_zero = true;
    let i = replay([failed(
        SECOND,
        CLIENT_NS,
        s,
        104,
        &["sk_error_report", "tcp_disconnect", "__tcp_close"],
    )]);
    assert!(i.is_empty(), "{:?} {}", causes(&i), i[0].message());
}

#[test]
fn a_scan_does_not_push_out_real_incidents() {
    let server = socket(2, SERVER, CLIENT, 10 * SECOND);
    let mut stray = data(SERVER, CLIENT);
    (stray.seq, stray.ack) = (9000, 5000);
    let mut hurt = server;
    (hurt.snd_nxt, hurt.rcv_nxt) = (9043, 5000);
    let mut ev = vec![
        conntrack_ended(100 * SECOND, conntrack_end(500 * SECOND, 4711)),
        sent(101 * SECOND, CLIENT_NS, no_socket(stray)),
        received(101 * SECOND + 1, SERVER_NS, hurt),
    ];
    for n in 0..5000u64 {
        let mut s = syn("192.0.2.1:40000", "10.0.1.2:1");
        s.flow.dst.set_port(1 + n as u16);
        ev.push(sent(200 * SECOND + n * 1_000_000, SERVER_NS, no_socket(s)));
    }
    let late = 400 * SECOND;
    ev.push(sent(late, SERVER_NS, at_listener(data(CLIENT, SERVER))));
    ev.push(received(late + 1, CLIENT_NS, socket(1, CLIENT, VIP, 10 * SECOND)));
    let i = replay(ev);
    let c: Vec<_> = causes(&i).into_iter().filter(|c| c != "connection_refused").collect();
    assert_eq!(c, ["conntrack_deleted", "+conntrack_deleted"]);
}

#[test]
fn a_flood_of_drops_does_not_push_out_ended_entries() {
    let mut c = Correlator::new();
    c.push(session(0));
    let mut ev = article().into_iter();
    c.push(ev.next().expect("an event"));
    for n in 0..9_000u64 {
        let mut s = syn("192.0.2.1:40000", "10.0.1.2:1");
        s.flow.dst.set_port((n % 65000) as u16 + 1);
        s.flow.src.set_port(40000 + (n / 65000) as u16);
        s.seq = (n as u32).wrapping_mul(7_000_000);
        let t = 940 * SECOND + n * 500_000;
        c.push(full_drop(t, s));
        if n % 40 == 0 {
            c.tick(t);
        }
    }
    let mut all = c.tick(999 * SECOND);
    all.clear();
    for e in ev {
        c.push(e);
    }
    assert_eq!(causes(&c.finish()), ["ipvs_idle_expired"]);
}

#[test]
fn a_connect_refused_through_nat_is_one_incident() {
    let mut ans = rstack(11 * SECOND + 1, CLIENT_NS, connecting());
    if let Body::ResetReceived(r) = &mut ans.body {
        let p = r.packet.as_mut().expect("set by the literal");
        p.seq = 0;
        p.ack = 5001;
    }
    let i = replay([
        sent(11 * SECOND, SERVER_NS, no_socket(syn(CLIENT, SERVER))),
        ans,
        failed(11 * SECOND + 2, CLIENT_NS, connecting(), 111, &["tcp_reset"]),
    ]);
    assert_eq!(causes(&i), ["connection_refused"]);
}

#[test]
fn both_ends_that_time_out_behind_nat_are_one_incident() {
    let mut srv = socket(2, SERVER, CLIENT, 10 * SECOND);
    (srv.snd_una, srv.snd_nxt, srv.rcv_nxt) = (9000, 9000, 5000);
    let i = replay([
        failed(
            100 * SECOND,
            CLIENT_NS,
            socket(1, CLIENT, VIP, 10 * SECOND),
            110,
            &["tcp_keepalive_timer"],
        ),
        failed(105 * SECOND, SERVER_NS, srv, 110, &["tcp_keepalive_timer"]),
    ]);
    assert_eq!(causes(&i), ["keepalive_exhausted", "+keepalive_exhausted"]);
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
fn a_full_table_is_not_ruled_out_against_the_evidence() {
    let mut server = socket(5, SERVER, CLIENT, 990 * SECOND);
    (server.snd_nxt, server.rcv_nxt, server.unread) = (9000, 5000, 12);
    let i = replay([
        full_drop(1000 * SECOND - 1_000_000, data(CLIENT, SERVER)),
        sent(1000 * SECOND, SERVER_NS, active(server, &["__tcp_close"], "TCP_ABORT_ON_CLOSE")),
    ]);
    assert!(!i[0].ruled_out.iter().any(|r| r.cause == "conntrack_table_full"
        && r.because.starts_with("no packet of this connection")));
}

#[test]
fn a_socket_with_its_own_keepalive_time_gets_no_sysctl() {
    let mut ev = article();
    for e in &mut ev {
        match &mut e.body {
            Body::ResetReceived(r) => {
                r.socket.keepalive.enabled = true;
                r.socket.keepalive.time_is_own = true;
            }
            Body::SocketError(r) => {
                r.socket.keepalive.enabled = true;
                r.socket.keepalive.time_is_own = true;
            }
            _ => {}
        }
    }
    let i = replay(ev);
    assert!(!i[0].fixes[0].changes.iter().any(|c| matches!(
        c,
        rsttrace_core::fix::Change::Sysctl { key: "net.ipv4.tcp_keepalive_time", .. }
    )));
}

#[test]
fn a_dropped_syn_does_not_explain_a_reset_after_the_connection_lived() {
    let mut tw = no_socket(data(CLIENT, SERVER));
    let mut s = socket(9, SERVER, CLIENT, 0);
    s.state = tcp_state::TIME_WAIT;
    s.tw_substate = 5;
    tw.socket = Some(s);
    tw.reason = Some("TCP_TIMEWAIT_SOCKET".into());
    let i = replay([
        full_drop(10 * SECOND, syn(CLIENT, SERVER)),
        sent(60 * SECOND, SERVER_NS, tw),
        received(60 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, SERVER, 59 * SECOND)),
    ]);
    assert_eq!(causes(&i), ["conntrack_table_full", "data_after_close"]);
}

#[test]
fn a_dropped_syn_does_not_explain_a_keepalive_timeout_hours_later() {
    let i = replay([
        full_drop(10 * SECOND, syn(CLIENT, SERVER)),
        failed(
            9000 * SECOND,
            CLIENT_NS,
            socket(1, CLIENT, SERVER, 5000 * SECOND),
            110,
            &["tcp_keepalive_timer"],
        ),
    ]);
    assert_eq!(causes(&i), ["conntrack_table_full", "keepalive_exhausted"]);
}

#[test]
fn direct_routing_has_no_nat_side() {
    let mut end = ipvs_end(900.0);
    end.flags = 3; // IP_VS_CONN_F_DROUTE: the destination address stays the VIP
    let mut ev = article();
    ev[0] = ipvs_ended(930 * SECOND, end);
    assert_eq!(replay(ev)[0].destination_nat, None);
}

#[test]
fn without_the_names_of_kernel_functions_unanswered_probes_have_no_verdict() {
    let mut probed = socket(1, CLIENT, SERVER, 5000 * SECOND);
    (probed.probes_out, probed.retransmits) = (9, 0);
    let i = replay([failed(9000 * SECOND, CLIENT_NS, probed.clone(), 110, &[])]);
    assert_eq!(causes(&i), ["unknown"]);
    probed.retransmits = 15;
    let i = replay([failed(9000 * SECOND, CLIENT_NS, probed, 110, &[])]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}

/// A new entry gave the packet to the server it was made with before, which has lost the connection.
#[test]
fn a_lost_entry_is_not_blamed_where_the_packet_was_translated_again_as_before() {
    const SERVERLESS: [&str; 2] = ["socket_gone", "wrong_backend"];
    let victim = || received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 50 * SECOND));
    for loss in [
        conntrack_ended(990 * SECOND, conntrack_end(5000 * SECOND, 4711)),
        conntrack_ended(990 * SECOND, conntrack_end(989 * SECOND, 0)),
        ipvs_ended(990 * SECOND, ipvs_end(900.0)),
    ] {
        for answer in [no_socket(data(CLIENT, SERVER)), at_listener(data(CLIENT, SERVER))] {
            let told = replay([loss.clone(), sent(1000 * SECOND, SERVER_NS, answer), victim()]);
            assert_eq!(told.len(), 1);
            assert!(SERVERLESS.contains(&told[0].cause.id), "{:?}", causes(&told));
            assert_eq!(told[0].destination, address(VIP));
            assert_eq!(told[0].destination_nat, Some(address(SERVER)));
        }
        // Another server has it now: that is what the loss did.
        let elsewhere = no_socket(data(CLIENT, "10.0.1.3:3306"));
        let told = replay([loss, sent(1000 * SECOND, SERVER_NS, elsewhere), victim()]);
        assert!(!SERVERLESS.contains(&told[0].cause.id), "{:?}", causes(&told));
    }
}
