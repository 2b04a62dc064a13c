//! Every reason for which the kernel sends a reset, with the cause that it gets: every row of `tcp_send_reset`
//! (include/net/rstreason.h) and every errno of a socket. The tests for lost state are in `joining`, `nat` and
//! `ipvs`.

use rsttrace_core::{
    event::{ResetSent, Socket, Task},
    testing::{
        CLIENT, CLIENT_NS, SECOND, SERVER, SERVER_NS, active, causes, data, failed, no_socket,
        received, replay, sent, socket, stack, task,
    },
};
use rsttrace_model::{tcp_flag, tcp_state};

const NOW: u64 = 1000 * SECOND;

/// The server's end of the connection whose client is [`client`].
fn server() -> Socket {
    let mut server = socket(5, SERVER, CLIENT, 990 * SECOND);
    (server.snd_nxt, server.rcv_nxt) = (9000, 5000);
    server
}

fn client() -> Socket {
    socket(1, CLIENT, SERVER, 990 * SECOND)
}

/// The causes of a reset that the server's socket sends actively: with the kernel's reason (6.10 on), and
/// with the stack only.
fn active_reset(change: fn(&mut ResetSent), functions: &[&str], reason: &str) -> [Vec<String>; 2] {
    [Some(reason), None].map(|reason| {
        let mut abort = active(server(), functions, "");
        abort.reason = reason.map(Into::into);
        change(&mut abort);
        causes(&replay([received(NOW, CLIENT_NS, client()), sent(NOW + 1, SERVER_NS, abort)]))
    })
}

fn set(abort: &mut ResetSent, change: impl FnOnce(&mut Socket)) {
    if let Some(socket) = &mut abort.socket {
        change(socket);
    }
}

#[test]
fn every_active_reset_gets_its_cause_with_and_without_a_reason() {
    let nothing: fn(&mut ResetSent) = |_| {};
    let unread: fn(&mut ResetSent) = |abort| set(abort, |socket| socket.unread = 10);
    let killed: fn(&mut ResetSent) = |abort| {
        set(abort, |socket| socket.unread = 10);
        abort.task = Task { exiting: true, exit_code: 9, ..task("server", 77) };
    };
    let linger: fn(&mut ResetSent) = |abort| set(abort, |socket| socket.linger_zero = true);
    let linger2: fn(&mut ResetSent) = |abort| set(abort, |socket| socket.linger2_negative = true);
    let orphan_linger2: fn(&mut ResetSent) =
        |abort| set(abort, |socket| (socket.dead, socket.linger2_negative) = (true, true));
    let orphan: fn(&mut ResetSent) = |abort| set(abort, |socket| socket.dead = true);
    let rows = [
        (unread, &["__tcp_close", "tcp_close"][..], "TCP_ABORT_ON_CLOSE", "close_unread_data"),
        (killed, &["__tcp_close", "tcp_close"], "TCP_ABORT_ON_CLOSE", "process_killed"),
        (linger, &["tcp_disconnect", "__tcp_close"], "TCP_STATE", "linger_zero"),
        (nothing, &["tcp_disconnect", "__inet_stream_connect"], "TCP_STATE", "linger_zero"),
        (
            nothing,
            &["tcp_disconnect", "__inet_stream_connect"],
            "TCP_DISCONNECT_WITH_DATA",
            "linger_zero",
        ),
        (linger2, &["__tcp_close", "tcp_close"], "TCP_ABORT_ON_LINGER", "linger_zero"),
        (orphan_linger2, &["tcp_keepalive_timer", "call_timer_fn"], "TCP_STATE", "linger_zero"),
        (
            nothing,
            &["tcp_disconnect", "inet_child_forget", "inet_csk_listen_stop"],
            "TCP_STATE",
            "listener_closed",
        ),
        (nothing, &["tcp_abort", "sock_diag_destroy"], "TCP_STATE", "socket_destroyed"),
        (
            orphan,
            &["tcp_out_of_resources", "tcp_write_timer_handler"],
            "TCP_ABORT_ON_MEMORY",
            "tcp_resource_limit",
        ),
    ];
    for (change, functions, reason, id) in rows {
        let found = active_reset(change, functions, reason);
        assert_eq!(found, [[id], [id]], "{reason} below {functions:?}");
    }
}

#[test]
fn exhausted_keepalive_is_recognised_by_its_timer_with_and_without_a_reason() {
    let gave_up = |reason: Option<&str>, user_timeout_ms| {
        let mut abort = active(client(), &["tcp_keepalive_timer", "call_timer_fn"], "");
        abort.reason = reason.map(Into::into);
        let failing = Socket { user_timeout_ms, probes_out: 9, ..client() };
        causes(&replay([
            sent(NOW, CLIENT_NS, abort),
            failed(NOW + 1, CLIENT_NS, failing, 110, &["tcp_keepalive_timer", "call_timer_fn"]),
        ]))
    };
    for reason in [Some("TCP_KEEPALIVE_TIMEOUT"), None] {
        assert_eq!(gave_up(reason, 0), ["keepalive_exhausted"]);
        assert_eq!(gave_up(reason, 5000), ["user_timeout"]);
    }
}

/// The causes of the answer to `flags` by a socket in `state`.
fn reply(state: u8, flags: u8, reason: &str, change: fn(&mut Socket)) -> [Vec<String>; 2] {
    [Some(reason), None].map(|reason| {
        let trigger = rsttrace_core::event::Packet { flags, ..data(CLIENT, SERVER) };
        let mut holder = Socket { state, ..server() };
        change(&mut holder);
        let mut answer = no_socket(trigger);
        answer.socket = Some(holder);
        answer.reason = reason.map(Into::into);
        answer.stack = stack(&["tcp_v4_send_reset", "tcp_v4_rcv"]);
        causes(&replay([sent(NOW, SERVER_NS, answer)]))
    })
}

#[test]
fn every_reset_reply_of_a_socket_gets_its_cause() {
    const DATA: u8 = tcp_flag::ACK | 8;
    let nothing: fn(&mut Socket) = |_| {};
    let dead: fn(&mut Socket) = |socket| socket.dead = true;
    let rows = [
        (tcp_state::TIME_WAIT, DATA, "TCP_TIMEWAIT_SOCKET", nothing, "data_after_close"),
        (5, DATA, "TCP_ABORT_ON_DATA", dead, "data_after_close"),
        (tcp_state::CLOSE, DATA, "TCP_ABORT_ON_DATA", dead, "data_after_close"),
        (tcp_state::SYN_SENT, 18, "TCP_INVALID_ACK_SEQUENCE", nothing, "handshake_rejected"),
        (tcp_state::SYN_SENT, 18, "TCP_RFC7323_PAWS", nothing, "handshake_rejected"),
        (tcp_state::SYN_RECV, 16, "TCP_OLD_ACK", nothing, "handshake_rejected"),
        (tcp_state::NEW_SYN_RECV, 16, "TCP_TOO_OLD_ACK", nothing, "handshake_rejected"),
        (tcp_state::SYN_RECV, 16, "TCP_ACK_UNSENT_DATA", nothing, "handshake_rejected"),
    ];
    for (state, flags, reason, change, id) in rows {
        assert_eq!(reply(state, flags, reason, change), [[id], [id]], "{reason} in {state}");
    }
}

#[test]
fn a_reason_without_a_cause_is_unknown_and_shown_by_name() {
    for reason in ["MPTCP_RST_EMIDDLEBOX", "MPTCP_RST_ERESOURCE", "REASON_OF_A_LATER_KERNEL"] {
        let abort = active(server(), &["tcp_send_active_reset", "mptcp_worker"], reason);
        let incidents =
            replay([received(NOW, CLIENT_NS, client()), sent(NOW + 1, SERVER_NS, abort)]);
        assert_eq!(causes(&incidents), ["unknown"]);
        assert!(incidents[0].why.contains(reason), "{}", incidents[0].why);
        assert!(incidents[0].prove.is_some());
    }
}

/// A socket that ends with `err` below these functions, without any reset.
fn ends(err: u32, change: fn(&mut Socket), functions: &[&str]) -> Vec<String> {
    let mut socket = client();
    change(&mut socket);
    causes(&replay([failed(NOW, CLIENT_NS, socket, err, functions)]))
}

#[test]
fn every_errno_without_a_reset_gets_its_cause() {
    let nothing: fn(&mut Socket) = |_| {};
    let connecting: fn(&mut Socket) = |socket| {
        (socket.state, socket.rcv_nxt, socket.last_received) = (tcp_state::SYN_SENT, 0, None);
        (socket.bytes_sent, socket.bytes_received) = (0, 0);
    };
    let soft: fn(&mut Socket) = |socket| socket.err_soft = 113;
    let bounded: fn(&mut Socket) = |socket| socket.user_timeout_ms = 5000;
    let write_timer = &["tcp_write_timer_handler", "call_timer_fn"][..];
    let rows = [
        (110, nothing, write_timer, "retransmission_timeout"),
        (110, connecting, write_timer, "retransmission_timeout"),
        (113, soft, &["tcp_retransmit_timer", "call_timer_fn"][..], "retransmission_timeout"),
        (110, bounded, write_timer, "user_timeout"),
        (103, nothing, &["tcp_abort", "sock_diag_destroy"][..], "socket_destroyed"),
        (111, connecting, &["tcp_v4_err", "icmp_rcv"][..], "connection_refused"),
        (113, connecting, &["tcp_v4_err", "icmp_rcv"][..], "unknown"),
    ];
    for (err, change, functions, id) in rows {
        assert_eq!(ends(err, change, functions), [id], "errno {err} below {functions:?}");
    }
}
