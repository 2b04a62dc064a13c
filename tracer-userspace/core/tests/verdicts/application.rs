//! Resets by applications, their limits and their half-closed connections, each with a near miss.

use rsttrace_core::{
    event::{Body, Event, Packet, ResetSent, Socket, SocketEnd, Task},
    incident::Incident,
    testing::{
        CLIENT, CLIENT_NS, SECOND, SERVER, SERVER_NS, active, address, article, at, at_listener,
        causes, data, failed, ipvs_end, ipvs_ended, no_socket, received, replay, rule_reject, sent,
        socket, task,
    },
    verdict::Confidence,
};
use rsttrace_model::{
    errno::{ECONNREFUSED, ECONNRESET, EPIPE},
    lookup::AcceptQueue,
    tcp_flag, tcp_state,
};

const NOW: u64 = 1000 * SECOND;

fn fix_ids(incident: &Incident) -> Vec<&str> {
    incident.fixes.iter().map(|fix| fix.id).collect()
}

/// The incident of the article with the entry in another state.
fn expired_in(state: u32, timeout_s: f64, forced: bool) -> Vec<Incident> {
    let mut events = article();
    events[0] = ipvs_ended(
        930 * SECOND,
        rsttrace_core::event::IpvsEnd { state, forced, ..ipvs_end(timeout_s) },
    );
    replay(events)
}

#[test]
fn an_expired_half_closed_entry_has_a_timeout_fix_only_if_its_timeout_can_be_set() {
    let in_fin_wait = expired_in(4, 120.0, false);
    assert_eq!(causes(&in_fin_wait), ["ipvs_halfclose_expired"]);
    assert!(fix_ids(&in_fin_wait[0]).contains(&"raise_ipvs_fin_timeout"));
    let in_close_wait = expired_in(7, 60.0, false);
    assert_eq!(causes(&in_close_wait), ["ipvs_halfclose_expired"]);
    assert!(!fix_ids(&in_close_wait[0]).contains(&"raise_ipvs_fin_timeout"));
    assert_eq!(in_close_wait[0].fixes[0].wanted.as_deref(), Some("20/2/3"));
}

#[test]
fn a_half_closed_entry_that_was_deleted_did_not_expire() {
    assert_ne!(causes(&expired_in(4, 120.0, true)), ["ipvs_halfclose_expired"]);
    assert_ne!(causes(&expired_in(1, 900.0, false)), ["ipvs_halfclose_expired"]);
}

/// The server's end of the connection whose client is `socket`.
fn server() -> Socket {
    let mut server = socket(5, SERVER, CLIENT, 990 * SECOND);
    (server.snd_nxt, server.rcv_nxt) = (9000, 5000);
    server
}

/// The server's socket sends an active reset, and the client receives it.
fn aborted(abort: ResetSent) -> Vec<Incident> {
    let mut client = socket(1, CLIENT, SERVER, 990 * SECOND);
    if abort.socket.as_ref().is_some_and(Socket::never_used) {
        (client.bytes_received, client.bytes_sent) = (0, 0);
    }
    replay([received(NOW, CLIENT_NS, client), sent(NOW + 1, SERVER_NS, abort)])
}

#[test]
fn a_server_that_aborts_a_connection_it_accepted_is_not_a_health_check() {
    let aborts = |mut socket: Socket| {
        socket.linger_zero = true;
        (socket.bytes_received, socket.bytes_sent) = (0, 0);
        active(socket, &["tcp_send_active_reset", "tcp_disconnect", "__tcp_close"], "")
    };
    assert_eq!(causes(&aborted(aborts(server()))), ["linger_zero"]);
    let checker = aborts(socket(1, CLIENT, SERVER, 990 * SECOND));
    assert_eq!(causes(&replay([sent(NOW, CLIENT_NS, checker)])), ["handshake_rejected"]);
}

const LISTEN_STOP: [&str; 5] = [
    "tcp_send_active_reset",
    "tcp_disconnect",
    "inet_child_forget",
    "inet_csk_listen_stop",
    "__tcp_close",
];

#[test]
fn a_queued_connection_of_a_closed_listener_is_recognised_even_when_it_inherited_linger_zero() {
    for linger_zero in [false, true] {
        let mut child = server();
        (child.bytes_received, child.bytes_sent, child.linger_zero) = (0, 0, linger_zero);
        let incidents = aborted(active(child, &LISTEN_STOP, "TCP_STATE"));
        assert_eq!(causes(&incidents), ["listener_closed"], "linger_zero: {linger_zero}");
    }
}

#[test]
fn an_accepted_connection_closed_with_linger_zero_is_not_caused_by_its_listener() {
    let mut accepted = server();
    accepted.linger_zero = true;
    let stack = ["tcp_send_active_reset", "tcp_disconnect", "__tcp_close"];
    assert_eq!(causes(&aborted(active(accepted, &stack, "TCP_STATE"))), ["linger_zero"]);
}

/// A listener with an accept queue beyond its limit of three answers a packet that does not complete its
/// handshake.
fn overflow(flags: u8, reason: Option<&str>) -> Vec<Incident> {
    let mut trigger = data(CLIENT, SERVER);
    trigger.flags = flags;
    let mut answer = at_listener(trigger);
    answer.reason = reason.map(Into::into);
    answer.stack =
        rsttrace_core::testing::stack(&["tcp_v4_send_reset", "tcp_check_req", "tcp_v4_rcv"]);
    if let Some(listener) = &mut answer.socket {
        (listener.ack_backlog, listener.max_ack_backlog) = (4, 3);
    }
    replay([sent(NOW, SERVER_NS, answer)])
}

#[test]
fn a_full_queue_that_answers_the_last_handshake_packet_is_recognised_with_and_without_a_reason() {
    assert_eq!(causes(&overflow(tcp_flag::ACK, Some("INVALID_SYN"))), ["listen_overflow"]);
    assert_eq!(causes(&overflow(tcp_flag::ACK, None)), ["listen_overflow"]);
}

#[test]
fn a_syn_that_does_not_fit_its_handshake_is_not_an_overflow() {
    for reason in [Some("INVALID_SYN"), None] {
        let incidents = overflow(tcp_flag::SYN, reason);
        assert_eq!(causes(&incidents), ["handshake_rejected"], "{reason:?}");
    }
}

/// An orphan that the kernel aborted, below these functions.
fn aborted_orphan(functions: &[&str], reason: Option<&str>) -> Vec<String> {
    let mut orphan = server();
    orphan.dead = true;
    let mut abort = active(orphan, functions, "");
    abort.reason = reason.map(Into::into);
    causes(&aborted(abort))
}

#[test]
fn an_orphan_freed_for_memory_is_a_resource_limit_with_or_without_a_reason() {
    for stack in [
        ["tcp_send_active_reset", "tcp_out_of_resources", "tcp_write_timer_handler"],
        ["tcp_send_active_reset", "__tcp_close", "tcp_close"],
    ] {
        assert_eq!(aborted_orphan(&stack, Some("TCP_ABORT_ON_MEMORY")), ["tcp_resource_limit"]);
        assert_eq!(aborted_orphan(&stack, None), ["tcp_resource_limit"]);
    }
}

#[test]
fn an_orphan_aborted_for_another_reason_is_not_a_resource_limit() {
    let stack = ["tcp_send_active_reset", "tcp_keepalive_timer"];
    assert_ne!(aborted_orphan(&stack, Some("TCP_KEEPALIVE_TIMEOUT")), ["tcp_resource_limit"]);
    assert_ne!(aborted_orphan(&stack, None), ["tcp_resource_limit"]);
    let stack = ["tcp_send_active_reset", "tcp_disconnect", "__tcp_close"];
    assert_ne!(aborted_orphan(&stack, None), ["tcp_resource_limit"]);
}

/// The server closed at this time after the connection had been idle; the client's data comes at NOW.
fn closed(ts: u64, idle_s: f64, by: Task, client_knew: bool) -> Vec<Incident> {
    let mut remains = server();
    (remains.state, remains.tw_substate) = (tcp_state::TIME_WAIT, 5);
    let mut answer = at_listener(data(CLIENT, SERVER));
    answer.socket = Some(remains);
    answer.reason = Some("TCP_TIMEWAIT_SOCKET".into());
    answer.end = Some(SocketEnd {
        ts,
        task: by,
        err: 0,
        old_state: tcp_state::ESTABLISHED,
        new_state: 4,
        idle_s: Some(idle_s),
    });
    let mut client = socket(1, CLIENT, SERVER, ts);
    (client.state, client.read_end) = (tcp_state::CLOSE_WAIT, client_knew);
    replay([sent(NOW, SERVER_NS, answer), received(NOW + 1, CLIENT_NS, client)])
}

const MILLISECOND: u64 = SECOND / 1000;

#[test]
fn data_that_crosses_the_close_of_an_idle_connection_is_a_race() {
    let incidents = closed(NOW - 80 * MILLISECOND, 5.0, task("node", 7), false);
    assert_eq!(causes(&incidents), ["idle_close_race"]);
    let why = "node (pid 7) closed the connection after 5.0 s without traffic, and the peer reused it \
               80 ms later";
    assert_eq!(incidents[0].why, why);
    assert_eq!(fix_ids(&incidents[0])[0], "pool_idle_below_limit");
}

#[test]
fn data_after_the_close_of_a_busy_connection_or_late_or_after_a_read_fin_or_an_exit_is_not_a_race()
{
    let node = || task("node", 7);
    let killed = Task { exiting: true, exit_code: 9, ..node() };
    let just_before = NOW - 80 * MILLISECOND;
    for (what, incidents, word) in [
        ("busy", closed(just_before, 0.2, node(), false), "closed the connection"),
        ("late", closed(NOW - 2 * SECOND, 5.0, node(), false), "2.0 s earlier"),
        ("knowing", closed(just_before, 5.0, node(), true), "closed the connection"),
        ("killed", closed(just_before, 5.0, killed, false), "was killed by signal 9"),
    ] {
        assert_eq!(causes(&incidents), ["data_after_close"], "{what}");
        assert!(incidents[0].why.contains(word), "{what}: {}", incidents[0].why);
    }
}

#[test]
fn data_after_a_close_that_is_not_on_record_is_only_correlated() {
    let mut remains = server();
    remains.dead = true;
    let mut answer = at_listener(data(CLIENT, SERVER));
    (answer.socket, answer.reason) = (Some(remains), Some("TCP_ABORT_ON_DATA".into()));
    let incidents = replay([sent(NOW, SERVER_NS, answer)]);
    assert_eq!(causes(&incidents), ["data_after_close"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Correlated));
}

/// A listener that last sent cookies at `cookies_sent` resets an ACK without a connection.
fn unmatched_ack(payload: u32, cookies_sent: Option<u64>) -> ResetSent {
    let mut trigger = data(CLIENT, SERVER);
    (trigger.flags, trigger.payload) = (tcp_flag::ACK, payload);
    let mut answer = at_listener(trigger);
    if let Some(listener) = &mut answer.socket {
        listener.cookies_sent = cookies_sent;
    }
    answer
}

/// The client of [`unmatched_ack`], whose server never sent anything, receives the reset.
fn unserved() -> Event {
    let mut client = socket(1, CLIENT, SERVER, 990 * SECOND);
    client.bytes_received = 0;
    received(NOW + 1, CLIENT_NS, client)
}

#[test]
fn a_cookie_that_does_not_validate_is_correlated() {
    for payload in [0, 43] {
        let answer = unmatched_ack(payload, Some(NOW - 100 * SECOND));
        let answer = sent(NOW, SERVER_NS, answer);
        let incidents = replay([answer.clone(), unserved()]);
        assert_eq!(causes(&incidents), ["syncookie_failed"], "{payload} B");
        assert_eq!(incidents[0].confidence, Some(Confidence::Correlated));
        // Where the client is on another host, a segment with data may belong to a connection that moved here.
        let alone = if payload == 0 { "syncookie_failed" } else { "unknown" };
        assert_eq!(causes(&replay([answer])), [alone], "{payload} B");
    }
}

#[test]
fn an_unmatched_packet_without_cookie_checks_or_of_a_used_connection_is_not_a_failed_cookie() {
    for cookies_sent in [None, Some(NOW - 130 * SECOND)] {
        for payload in [0, 43] {
            let answer = sent(NOW, SERVER_NS, unmatched_ack(payload, cookies_sent));
            assert_eq!(causes(&replay([answer.clone(), unserved()])), ["wrong_backend"]);
            // Without the client, it may be a scan.
            assert_eq!(causes(&replay([answer])), ["unknown"]);
        }
    }
    // The listener had sent cookies to others.
    let answer = unmatched_ack(43, Some(NOW - SECOND));
    let used = socket(1, CLIENT, SERVER, 990 * SECOND);
    let incidents = replay([sent(NOW, SERVER_NS, answer), received(NOW + 1, CLIENT_NS, used)]);
    assert_eq!(causes(&incidents), ["wrong_backend"]);
}

/// A connect from CLIENT to SERVER that fails.
fn connect_failed(err: u32) -> Event {
    let mut connecting = socket(1, CLIENT, SERVER, 0);
    (connecting.state, connecting.last_received, connecting.rcv_nxt) =
        (tcp_state::SYN_SENT, None, 0);
    (connecting.bytes_sent, connecting.bytes_received, connecting.snd_una) = (0, 0, 5000);
    failed(NOW, CLIENT_NS, connecting, err, &["tcp_v4_err"])
}

fn syn(src: &str, dst: &str) -> Packet {
    Packet { flags: tcp_flag::SYN, ack: 0, payload: 0, ..data(src, dst) }
}

#[test]
fn a_connect_that_a_rule_answered_with_an_icmp_error_was_not_refused_by_a_closed_port() {
    let rule = rule_reject(NOW - MILLISECOND, syn(CLIENT, SERVER));
    let incidents = replay([rule, connect_failed(111)]);
    assert_eq!(causes(&incidents), ["firewall_reject"]);
    assert!(incidents[0].why.contains("nftables"), "{}", incidents[0].why);
    assert_eq!((incidents[0].rst.direction, incidents[0].rst.origin), ("none", Some("none")));
}

#[test]
fn a_rule_that_answered_another_connection_does_not_explain_a_refused_connect() {
    let rule = rule_reject(NOW - MILLISECOND, syn("10.0.0.2:41823", SERVER));
    assert_eq!(causes(&replay([rule, connect_failed(111)])), ["connection_refused"]);
    // The drop by a rule alone is not an incident.
    assert!(replay([rule_reject(NOW, syn(CLIENT, SERVER))]).is_empty());
}

#[test]
fn retries_that_a_rule_answered_with_icmp_errors_are_exhausted_because_of_the_rule() {
    let mut client = socket(1, CLIENT, SERVER, 990 * SECOND);
    client.err_soft = 113;
    let gave_up = failed(NOW, CLIENT_NS, client.clone(), 113, &["tcp_write_timer"]);
    let rule = rule_reject(995 * SECOND, data(CLIENT, SERVER));
    assert_eq!(causes(&replay([rule, gave_up.clone()])), ["firewall_reject"]);
    assert_eq!(causes(&replay([gave_up.clone()])), ["retransmission_timeout"]);
    // The client has received from its peer since: the earlier rule does not matter.
    let long_ago = rule_reject(900 * SECOND, data(CLIENT, SERVER));
    assert_eq!(causes(&replay([long_ago, gave_up])), ["retransmission_timeout"]);
}

#[test]
fn a_reset_that_answers_the_peer_after_a_timeout_is_not_the_reset_of_the_timeout() {
    let client = socket(1, CLIENT, SERVER, 990 * SECOND);
    let mut late = data(SERVER, CLIENT);
    (late.seq, late.ack) = (9000, 5000);
    let incidents = replay([
        failed(NOW, CLIENT_NS, client, 110, &["tcp_write_timer"]),
        sent(NOW + MILLISECOND, CLIENT_NS, no_socket(late)),
        received(NOW + 2 * MILLISECOND, SERVER_NS, server()),
    ]);
    assert_eq!(causes(&incidents), ["retransmission_timeout"]);
    let rst = &incidents[0].rst;
    assert_eq!((rst.direction, rst.origin, rst.reason.as_deref()), ("none", Some("none"), None));
}

/// A reading of the accept queue at SERVER.
fn queue(waiting: u32) -> Event {
    let queue = AcceptQueue { address: address(SERVER), waiting, allowed: 3, read: NOW };
    at(NOW, SERVER_NS, Body::AcceptQueue(Box::new(queue)))
}

#[test]
fn a_connect_that_timed_out_at_a_full_queue_is_an_overflow_and_at_one_with_room_is_not() {
    let incidents = replay([connect_failed(110), queue(4)]);
    assert_eq!(causes(&incidents), ["listen_overflow"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Correlated));
    assert_eq!(causes(&replay([connect_failed(110), queue(3)])), ["retransmission_timeout"]);
    assert_eq!(causes(&replay([connect_failed(110)])), ["retransmission_timeout"]);
}

#[test]
fn a_connection_whose_server_has_sent_data_was_accepted_before_its_queue_was_full() {
    let client = socket(1, CLIENT, SERVER, 990 * SECOND);
    let gave_up = failed(NOW, CLIENT_NS, client, 110, &["tcp_write_timer"]);
    assert_eq!(causes(&replay([gave_up, queue(4)])), ["retransmission_timeout"]);
}

#[test]
fn a_dropped_handshake_at_a_full_queue_is_an_overflow_and_a_used_connection_is_not() {
    let mut answer = at_listener(data(CLIENT, SERVER));
    if let Some(listener) = &mut answer.socket {
        (listener.ack_backlog, listener.max_ack_backlog) = (4, 3);
    }
    let client = |bytes_received| {
        let client = socket(1, CLIENT, SERVER, 900 * SECOND);
        received(NOW + 1, CLIENT_NS, Socket { bytes_received, ..client })
    };
    let found = |client| causes(&replay([sent(NOW, SERVER_NS, answer.clone()), client]));
    assert_eq!(found(client(0)), ["listen_overflow"]);
    assert_eq!(found(client(100)), ["wrong_backend"]);
}

/// The end of CLIENT's or SERVER's socket: its process ended with this exit code, or lives.
fn ended(exit_code: Option<u32>) -> SocketEnd {
    SocketEnd {
        ts: NOW - SECOND / 10,
        task: Task {
            exiting: exit_code.is_some(),
            exit_code: exit_code.unwrap_or(0),
            ..task("shop", 77)
        },
        err: 0,
        old_state: tcp_state::ESTABLISHED,
        new_state: tcp_state::FIN_WAIT1,
        idle_s: Some(0.2),
    }
}

#[test]
fn no_idle_timeout_is_advised_where_the_process_had_ended() {
    let advised = |exit_code| {
        let mut answer = no_socket(data(CLIENT, SERVER));
        let mut waiting = server();
        (waiting.state, waiting.dead) = (tcp_state::TIME_WAIT, true);
        (answer.socket, answer.end) = (Some(waiting), Some(ended(exit_code)));
        let incidents = replay([sent(NOW, SERVER_NS, answer)]);
        assert_eq!(causes(&incidents), ["data_after_close"]);
        (fix_ids(&incidents[0])[0].to_owned(), incidents[0].fixes[0].summary.clone())
    };
    let (id, summary) = advised(Some(9));
    assert_eq!(id, "stop_gracefully");
    assert!(summary.contains("what sent signal 9 to shop (pid 77)"), "{summary}");
    let (id, summary) = advised(Some(0));
    assert_eq!(id, "stop_gracefully");
    assert!(summary.contains("before it exits"), "{summary}");
    assert_eq!(advised(None).0, "reuser_gives_up_first");
}

#[test]
fn the_fix_for_a_closed_socket_depends_on_its_end_and_its_process() {
    let advised = |packet: Packet, netns, exit_code| {
        let mut answer = no_socket(packet);
        answer.end = Some(ended(exit_code));
        let incidents = replay([sent(NOW, netns, answer)]);
        assert_eq!(causes(&incidents), ["socket_gone"]);
        fix_ids(&incidents[0])[0].to_owned()
    };
    assert_eq!(advised(data(CLIENT, SERVER), SERVER_NS, None), "detect_restarts");
    assert_eq!(advised(data(SERVER, CLIENT), CLIENT_NS, None), "caller_waits_longer");
    assert_eq!(advised(data(SERVER, CLIENT), CLIENT_NS, Some(9)), "stop_gracefully");
}

#[test]
fn the_error_of_a_reset_is_known_before_the_socket_has_it() {
    let errno = |state, dead| {
        let victim = Socket { state, dead, ..socket(1, CLIENT, SERVER, SECOND) };
        replay([received(2 * SECOND, CLIENT_NS, victim)]).remove(0).errno
    };
    assert_eq!(errno(tcp_state::ESTABLISHED, false), Some(ECONNRESET));
    assert_eq!(errno(tcp_state::CLOSE_WAIT, false), Some(EPIPE));
    assert_eq!(errno(tcp_state::SYN_SENT, false), Some(ECONNREFUSED));
    assert_eq!(errno(tcp_state::CLOSE, false), None, "tcp_reset does nothing");
    assert_eq!(errno(tcp_state::FIN_WAIT2, true), None, "no process holds it");
}
