//! Other streams that once gave a wrong verdict; each test claims that its kind no longer does.

use rsttrace_core::{
    event::{Body, Socket},
    testing::*,
};

#[test]
fn an_unmatched_packet_at_a_busy_listener_is_not_an_overflow() {
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
fn the_task_that_a_timer_interrupted_is_not_named() {
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
fn a_peer_that_answers_with_a_closed_window_is_not_a_lost_path() {
    let gave_up = |snd_wnd, probes_out| {
        let waiting = Socket {
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
    assert_eq!(gave_up(0, 3), (false, "restore_the_path"), "the probes were not answered");
    assert_eq!(gave_up(65535, 0), (false, "restore_the_path"));
}

#[test]
fn an_unmatched_segment_after_the_reset_does_not_explain_it() {
    let i = replay([
        session(980 * SECOND),
        received(1000 * SECOND, CLIENT_NS, socket(1, CLIENT, SERVER, 27 * SECOND)),
        sent(1000 * SECOND + SECOND / 5, CLIENT_NS, no_socket(data(SERVER, CLIENT))),
    ]);
    assert_eq!(causes(&i), ["unknown"]);
    assert!(!i[0].message().contains("does not know"), "{}", i[0].message());
}

#[test]
fn a_full_table_is_not_ruled_out_when_it_dropped_a_packet_of_the_connection() {
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
fn a_socket_with_its_own_keepalive_time_does_not_get_a_sysctl_fix() {
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
fn without_the_names_of_kernel_functions_unanswered_probes_have_no_verdict() {
    let mut probed = socket(1, CLIENT, SERVER, 5000 * SECOND);
    (probed.probes_out, probed.retransmits) = (9, 0);
    let i = replay([failed(9000 * SECOND, CLIENT_NS, probed.clone(), 110, &[])]);
    assert_eq!(causes(&i), ["unknown"]);
    probed.retransmits = 15;
    let i = replay([failed(9000 * SECOND, CLIENT_NS, probed, 110, &[])]);
    assert_eq!(causes(&i), ["retransmission_timeout"]);
}
