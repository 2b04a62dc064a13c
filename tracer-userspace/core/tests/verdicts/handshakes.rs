//! Connects, dropped SYNs and floods of them, in streams that once gave a wrong verdict.

use rsttrace_core::{
    correlator::Correlator,
    event::{Body, Event, Packet, Socket},
    testing::{flow, *},
};
use rsttrace_model::{flow::Nanos, tcp_flag, tcp_state};

fn syn(a: &str, b: &str) -> Packet {
    let mut p = data(a, b);
    (p.flags, p.ack, p.payload) = (tcp_flag::SYN, 0, 0);
    p
}

fn connecting() -> Socket {
    let mut s = socket(1, CLIENT, VIP, 0);
    s.state = tcp_state::SYN_SENT;
    (s.last_received, s.rcv_nxt) = (None, 0);
    (s.bytes_sent, s.bytes_received) = (0, 0);
    s
}

/// `s` receives a RST|ACK.
fn rstack(ts: Nanos, ns: u32, s: Socket) -> Event {
    let mut e = received(ts, ns, s);
    if let Body::ResetReceived(r) = &mut e.body {
        r.packet.as_mut().expect("set by the literal").flags = 4 | 16;
    }
    e
}

#[test]
fn a_syn_timeout_is_not_caused_by_the_ipvs_entry_of_an_earlier_connection() {
    let i = replay([
        ipvs_ended(930 * SECOND, ipvs_end(900.0)),
        failed(1000 * SECOND, CLIENT_NS, connecting(), 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}

#[test]
fn a_syn_timeout_is_not_caused_by_the_nat_entry_of_an_earlier_connection() {
    let mut s = connecting();
    s.state = tcp_state::CLOSE;
    let i = replay([
        conntrack_ended(930 * SECOND, conntrack_end(5000 * SECOND, 4711)),
        failed(1000 * SECOND, CLIENT_NS, s, 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}

#[test]
fn an_old_dropped_syn_does_not_hide_a_later_expiry() {
    let i = replay([
        full_drop(10 * SECOND, syn(CLIENT, VIP)),
        ipvs_ended(4930 * SECOND, ipvs_end(900.0)),
        sent(5000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))),
    ]);
    assert_eq!(causes(&i), ["conntrack_table_full", "ipvs_idle_expired"]);
}

#[test]
fn an_old_dropped_syn_does_not_hide_a_later_expiry_after_much_payload() {
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
    let mut answer = rstack(11 * SECOND + 1, CLIENT_NS, connecting());
    if let Body::ResetReceived(r) = &mut answer.body {
        let p = r.packet.as_mut().expect("set by the literal");
        p.seq = 0;
        p.ack = 5001;
    }
    let i = replay([
        full_drop(10 * SECOND, syn(CLIENT, VIP)),
        sent(11 * SECOND, NODE_NS, no_socket(syn(CLIENT, VIP))),
        answer,
        failed(11 * SECOND + 2, CLIENT_NS, connecting(), 111, &["tcp_reset"]),
    ]);
    assert_eq!(causes(&i), ["conntrack_table_full", "connection_refused"]);
}

#[test]
fn exhausted_syn_retries_are_not_a_user_timeout() {
    let mut s = connecting();
    s.user_timeout_ms = 1_800_000;
    s.retransmits = 6;
    let i = replay([failed(137 * SECOND, CLIENT_NS, s, 110, &["tcp_retransmit_timer"])]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}

#[test]
fn an_abandoned_connect_is_not_an_incident() {
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
fn a_port_scan_does_not_evict_real_incidents() {
    let server = socket(2, SERVER, CLIENT, 10 * SECOND);
    let mut segment = data(SERVER, CLIENT);
    (segment.seq, segment.ack) = (9000, 5000);
    let mut victim = server;
    (victim.snd_nxt, victim.rcv_nxt) = (9043, 5000);
    let mut ev = vec![
        conntrack_ended(100 * SECOND, conntrack_end(500 * SECOND, 4711)),
        sent(101 * SECOND, CLIENT_NS, no_socket(segment)),
        received(101 * SECOND + 1, SERVER_NS, victim),
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
fn a_flood_of_drops_does_not_evict_ended_entries() {
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
    let mut answer = rstack(11 * SECOND + 1, CLIENT_NS, connecting());
    if let Body::ResetReceived(r) = &mut answer.body {
        let p = r.packet.as_mut().expect("set by the literal");
        p.seq = 0;
        p.ack = 5001;
    }
    let i = replay([
        sent(11 * SECOND, SERVER_NS, no_socket(syn(CLIENT, SERVER))),
        answer,
        failed(11 * SECOND + 2, CLIENT_NS, connecting(), 111, &["tcp_reset"]),
    ]);
    assert_eq!(causes(&i), ["connection_refused"]);
}

#[test]
fn a_dropped_syn_does_not_explain_a_reset_of_the_later_connection() {
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
