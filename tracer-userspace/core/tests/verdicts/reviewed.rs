//! Verdicts that a review proved wrong once, with their neighbours. Each test is named for the event sequence.

use std::net::IpAddr;

use rsttrace_core::{
    event::{
        Body, ConntrackEnd, EndedSocket, EndedSockets, Event, IpvsEnd, NatChainRemoved, Packet,
        PeerSocket, ResetReceived, ResetSent, SocketEnd, Task, Via,
    },
    incident::Incident,
    testing::*,
};
use rsttrace_model::{
    conntrack::{ConntrackEntry, ConntrackState},
    flow::Nanos,
    ipvs::{IpvsDestination, IpvsService, IpvsState},
    lookup::{ConntrackFound, StateLookup},
    netns::{NatFamilies, NetnsState},
    socket::SocketState,
    tcp_flag, tcp_state,
};

/// `cause family confidence` of each incident.
fn verdicts(incidents: &[Incident]) -> Vec<String> {
    incidents
        .iter()
        .map(|incident| {
            let confidence = incident.confidence.map_or("none", |confidence| confidence.id());
            format!("{} {} {confidence}", incident.cause.id, incident.cause.family.id())
        })
        .collect()
}

/// `verdicts` of a stream.
fn verdicts_of(events: impl IntoIterator<Item = Event>) -> Vec<String> {
    verdicts(&replay(events))
}

/// The process `comm` closed the socket at `ts`; `new_state` as in include/net/tcp_states.h.
fn closed_at(ts: Nanos, comm: &str, new_state: u8) -> SocketEnd {
    SocketEnd { ts, task: task(comm, 7), err: 0, old_state: 1, new_state, idle_s: Some(0.0) }
}

/// The server closes with unread data; `answer` is how its host answers each segment in flight.
fn upload_in_flight(
    segments: u32,
    delay: Nanos,
    answer: impl Fn(Packet) -> ResetSent,
) -> Vec<Event> {
    let mut server = socket(5, SERVER, CLIENT, 1000 * SECOND);
    server.state = tcp_state::CLOSE;
    server.unread = 4000;
    let functions = ["tcp_send_active_reset", "__tcp_close", "tcp_close"];
    let mut events =
        vec![sent(1000 * SECOND, SERVER_NS, active(server, &functions, "TCP_ABORT_ON_CLOSE"))];
    for n in 0..segments {
        let seq = 9000 + 65_000 * (n + 1);
        let packet = Packet { seq, ack: 5000, payload: 65_000, ..data(CLIENT, SERVER) };
        let ts = 1000 * SECOND + delay + u64::from(n) * 1_000_000;
        events.push(sent(ts, SERVER_NS, answer(packet)));
    }
    events
}

/// verdicts.md 2, t1: segments of its window belong to the reset.
#[test]
fn segments_in_flight_after_a_close_with_unread_data() {
    let events = upload_in_flight(16, 20_000_000, |packet| {
        let end = Some(closed_at(1000 * SECOND - 10_000, "nginx", 7));
        ResetSent { end, ..at_listener(packet) }
    });
    assert_eq!(verdicts_of(events), ["close_unread_data application observed"]);
}

/// verdicts.md 2, t13.
#[test]
fn segments_in_flight_after_a_kill() {
    let mut events = upload_in_flight(4, 300_000_000, no_socket);
    if let Body::ResetSent(reset) = &mut events[0].body {
        reset.task = Task { pid: 9, comm: "app".into(), exiting: true, exit_code: 9 };
    }
    assert_eq!(verdicts_of(events), ["process_killed application observed"]);
}

/// The client closed at 100 s, the entry `end` is lost, the server sends data at 300 s.
fn answer_after_the_close(end: Event) -> Vec<Event> {
    let mut server = socket(5, SERVER, CLIENT, 100 * SECOND);
    (server.snd_una, server.snd_nxt, server.rcv_nxt) = (9000, 9000, 5001);
    server.state = tcp_state::CLOSE_WAIT;
    let packet = Packet { seq: 9000, ack: 5001, payload: 500, ..data(SERVER, CLIENT) };
    let broke = 300 * SECOND;
    vec![
        end,
        sent(broke, CLIENT_NS, no_socket(packet)),
        received(broke + 50_000, SERVER_NS, server.clone()),
        failed(broke + 90_000, SERVER_NS, server, 32, &["tcp_reset"]),
    ]
}

/// verdicts.md 1, t2. No timer is blamed: a closed socket would have reset it too.
#[test]
fn an_ipvs_entry_in_close_wait_expired_after_the_client_closed() {
    let end = ipvs_ended(160 * SECOND, IpvsEnd { state: 7, ..ipvs_end(60.0) });
    assert_eq!(verdicts_of(answer_after_the_close(end)), ["unknown unknown none"]);
}

/// verdicts.md 1, t2: as for IPVS.
#[test]
fn a_conntrack_entry_in_close_wait_expired_after_the_client_closed() {
    let mut end = conntrack_end(160 * SECOND, 0);
    end.state = 5;
    let events = answer_after_the_close(conntrack_ended(165 * SECOND, end));
    assert_eq!(verdicts_of(events), ["unknown unknown none"]);
}

/// The socket of the client ended at 100 s, or was only shut for writing and is `held`.
fn client_ended(held: Option<bool>) -> Event {
    let packet = flow(SERVER, CLIENT);
    let end = closed_at(100 * SECOND, "curl", 4);
    let flow = flow(CLIENT, VIP);
    let ended = vec![EndedSocket { netns: CLIENT_NS, flow, end, held }];
    at(300 * SECOND, CLIENT_NS, Body::EndedSockets(Box::new(EndedSockets { packet, ended })))
}

/// verdicts.md 1, t2, where the client's close is on record under the address that it used.
#[test]
fn an_entry_expired_after_a_recorded_close_or_half_close() {
    for end in [
        ipvs_ended(160 * SECOND, IpvsEnd { state: 7, ..ipvs_end(60.0) }),
        conntrack_ended(165 * SECOND, ConntrackEnd { state: 5, ..conntrack_end(160 * SECOND, 0) }),
    ] {
        let limit = match end.body {
            Body::IpvsEnd(_) => "ipvs_halfclose_expired timeout_mismatch observed",
            _ => "conntrack_idle_expired timeout_mismatch observed",
        };
        let closed = "data_after_close application observed";
        let unknown = "unknown unknown none";
        for (held, right) in [(Some(false), closed), (Some(true), limit), (None, unknown)] {
            let mut events = answer_after_the_close(end.clone());
            events.insert(2, client_ended(held));
            assert_eq!(verdicts_of(events), [right]);
        }
    }
}

/// The addresses and ports of a closed connection are used again within a second: its end does not belong to the new
/// connection, whose sockets have received no FIN.
#[test]
fn an_entry_expired_after_an_earlier_connection_of_the_tuple_was_closed() {
    let mut events = article();
    let earlier = closed_at(26 * SECOND + SECOND / 2, "nginx", 4);
    let flow = flow(SERVER, CLIENT);
    let ended = vec![EndedSocket { netns: SERVER_NS, flow, end: earlier, held: Some(false) }];
    let packet = data(CLIENT, VIP).flow;
    let ended = Body::EndedSockets(Box::new(EndedSockets { packet, ended }));
    events.insert(2, at(1000 * SECOND, NODE_NS, ended));
    assert_eq!(verdicts_of(events), ["ipvs_idle_expired timeout_mismatch observed"]);
}

/// The server had sent its FIN before its entry was lost; whether it was a close is not known.
#[test]
fn an_entry_was_lost_after_the_server_had_sent_its_fin() {
    let mut client = socket(1, CLIENT, VIP, 27 * SECOND);
    client.state = tcp_state::CLOSE_WAIT;
    for (end, right) in [
        (
            conntrack_ended(90 * SECOND, conntrack_end(500 * SECOND, 4711)),
            "conntrack_deleted state_lost inferred",
        ),
        (
            ipvs_ended(930 * SECOND, IpvsEnd { state: 4, ..ipvs_end(120.0) }),
            "ipvs_halfclose_expired timeout_mismatch inferred",
        ),
    ] {
        let incidents = replay([
            end,
            sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))),
            received(1000 * SECOND + 1000, CLIENT_NS, client.clone()),
        ]);
        assert_eq!(verdicts(&incidents), [right]);
        let prove = incidents[0].prove.as_deref().unwrap_or_default();
        assert!(prove.contains("closed its socket or only shut it"), "{prove}");
    }
}

/// A reject rule of the node, with a reset, meets `packet`.
fn rejected(packet: Packet) -> Event {
    let mut reset = no_socket(packet);
    (reset.via, reset.reason) = (Via::Netfilter, None);
    reset.stack = stack(&["nf_send_reset", "reject_tg", "nft_do_chain"]);
    sent(100 * SECOND, NODE_NS, reset)
}

/// verdicts.md 5, t3: nf_send_reset answers no RST.
#[test]
fn a_reject_rule_that_meets_a_reset() {
    let reset = Packet {
        flags: tcp_flag::RST,
        payload: 0,
        ack: 0,
        ..data("203.0.113.9:443", "10.0.0.2:41822")
    };
    assert!(verdicts_of([rejected(reset)]).is_empty());
}

/// verdicts.md 5, t3: no socket of this host was refused, and no connection existed.
#[test]
fn a_scan_of_rejected_ports() {
    let syn = |port: u32| Packet {
        flags: tcp_flag::SYN,
        payload: 0,
        ack: 0,
        seq: port * 1_000_000,
        ..data("203.0.113.9:55555", &format!("10.0.0.2:{port}"))
    };
    assert_eq!(
        verdicts_of((1..=5).map(|port| rejected(syn(port)))),
        ["handshake_rejected benign observed"; 5]
    );
}

/// verdicts.md 23, t3: with payload or without, one report for each source.
#[test]
fn a_scan_with_ack_segments() {
    let segment = |source: &str, port: u32, payload| Packet {
        flags: tcp_flag::ACK,
        payload,
        seq: port * 1_000_000,
        ack: port * 7_000_000,
        ..data(source, &format!("10.0.0.2:{port}"))
    };
    let events = (1..=3).flat_map(|port| {
        [segment("203.0.113.9:55555", port, 0), segment("203.0.113.9:55556", port, 20)]
            .map(|packet| sent(100 * SECOND, NODE_NS, no_socket(packet)))
    });
    assert_eq!(verdicts_of(events), ["unknown unknown none"]);
}

/// verdicts.md 6, t4: connect() failed.
#[test]
fn a_syn_that_met_a_socket_in_fin_wait2_of_the_same_tuple() {
    let mut old = socket(9, SERVER, CLIENT, 0);
    old.state = tcp_state::TIME_WAIT;
    old.tw_substate = 5;
    let syn = Packet { flags: tcp_flag::SYN, payload: 0, ack: 0, ..data(CLIENT, SERVER) };
    let mut reset = no_socket(syn);
    reset.socket = Some(old);
    reset.reason = Some("TCP_TIMEWAIT_SOCKET".into());
    let mut client = socket(1, CLIENT, SERVER, 0);
    client.state = tcp_state::SYN_SENT;
    (client.last_received, client.rcv_nxt) = (None, 0);
    (client.bytes_sent, client.bytes_received) = (0, 0);
    let events = [
        sent(100 * SECOND, SERVER_NS, reset),
        received(100 * SECOND + 5, CLIENT_NS, client.clone()),
        failed(100 * SECOND + 9, CLIENT_NS, client, 111, &["tcp_reset"]),
    ];
    let incidents = replay(events);
    assert_eq!(verdicts(&incidents), ["data_after_close application correlated"]);
    assert!(incidents[0].evidence.iter().any(|it| it.summary.contains("TIME_WAIT")));
    assert_eq!(incidents[0].fixes[0].id, "connect_from_another_port");
}

/// verdicts.md 7, t5: the entry was a synchronised copy (IP_VS_CONN_F_SYNC, 0x20) that carried no packet on this
/// director before the fail-over.
#[test]
fn the_copy_of_a_backup_director_expired_before_the_fail_over() {
    let end = IpvsEnd { flags: 0x20, last_packet: Some(30 * SECOND), ..ipvs_end(900.0) };
    let events =
        [ipvs_ended(930 * SECOND, end), sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP)))];
    assert_eq!(verdicts_of(events), ["ipvs_entry_dropped state_lost correlated"]);
}

/// The same entry after this director had forwarded packets of the connection.
#[test]
fn a_copy_that_carried_packets_expired() {
    let end = IpvsEnd {
        flags: 0x20,
        packets: Some(40),
        last_packet: Some(30 * SECOND),
        ..ipvs_end(900.0)
    };
    let events =
        [ipvs_ended(930 * SECOND, end), sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP)))];
    assert_eq!(verdicts_of(events), ["ipvs_idle_expired timeout_mismatch observed"]);
}

/// verdicts.md 7: also without a local victim, an entry that ended before its timeout did not expire.
#[test]
fn an_entry_that_ended_too_soon_did_not_expire() {
    let end = IpvsEnd { last_packet: Some(900 * SECOND), ..ipvs_end(900.0) };
    let events =
        [ipvs_ended(930 * SECOND, end), sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP)))];
    assert_eq!(verdicts_of(events), ["unknown unknown none"]);
}

fn service(ts: Nanos) -> Event {
    let server = address(SERVER);
    let destination =
        IpvsDestination { ip: server.ip(), port: server.port(), weight: 1, forward: 0 };
    let vip: IpAddr = address(VIP).ip();
    let service = IpvsService {
        ip: vip,
        port: address(VIP).port(),
        fwmark: 0,
        protocol: 6,
        scheduler: "rr".into(),
        destinations: vec![destination],
    };
    let ipvs = IpvsState {
        timeout_tcp_s: Some(900),
        services: Some(vec![service]),
        ..IpvsState::default()
    };
    let state = NetnsState { inum: NODE_NS, ipvs: Some(ipvs), ..NetnsState::default() };
    at(ts, NODE_NS, Body::Netns(Box::new(state)))
}

/// Address `n` of 198.18.0.0/15 with a port of its own.
fn flooder(n: u32) -> String {
    format!("198.{}.{}.{}:{}", 18 + n % 2, n / 256 % 256, n % 256, 1024 + n / 1000)
}

/// The entry of CLIENT is flushed by drop_entry; then `flood` half-open entries end.
fn flushed_before_a_flood(flood: u32) -> Vec<Event> {
    let mut end = ipvs_end(900.0);
    end.stack = stack(&["ip_vs_conn_expire", "ip_vs_random_dropentry"]);
    let mut events = vec![service(1), ipvs_ended(2000 * SECOND, end)];
    for n in 0..flood {
        let half_open = IpvsEnd {
            state: 3,
            virtual_flow: flow(&flooder(n), VIP),
            real_flow: flow(&flooder(n), SERVER),
            ..ipvs_end(60.0)
        };
        events.push(ipvs_ended(2001 * SECOND + u64::from(n), half_open));
    }
    events.push(sent(2100 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    events.push(received(2100 * SECOND + 5, CLIENT_NS, socket(1, CLIENT, VIP, 1990 * SECOND)));
    events
}

/// t6 without a flood: right already.
#[test]
fn an_entry_flushed_by_drop_entry() {
    assert_eq!(verdicts_of(flushed_before_a_flood(0)), ["ipvs_entry_dropped state_lost observed"]);
}

/// verdicts.md 4, t6. Half-open entries displace no other.
#[test]
fn an_entry_flushed_by_drop_entry_before_a_syn_flood() {
    assert_eq!(
        verdicts_of(flushed_before_a_flood(70_000)),
        ["ipvs_entry_dropped state_lost observed"]
    );
}

/// verdicts.md 4, t6. Entries without NAT displace no IPVS entry.
#[test]
fn an_expired_entry_before_a_flush_of_conntrack_entries_without_nat() {
    let mut events = vec![ipvs_ended(930 * SECOND, ipvs_end(900.0))];
    for n in 0..70_000 {
        let mut end = conntrack_end(990 * SECOND, 77);
        end.status = 0xe;
        end.original = flow(&flooder(n), "10.0.0.9:80");
        end.reply = end.original.reversed();
        events.push(conntrack_ended(940 * SECOND, end));
    }
    events.extend(article().into_iter().skip(1));
    assert_eq!(verdicts_of(events), ["ipvs_idle_expired timeout_mismatch observed"]);
}

/// verdicts.md 9, t7: the end of 11 hours before may belong to another connection, which is said.
#[test]
fn the_end_of_an_older_connection_of_the_same_tuple() {
    let mut reset = at_listener(data("203.0.113.5:40000", "10.0.0.9:3306"));
    reset.end = Some(closed_at(100 * SECOND, "nginx", 4));
    let incidents = replay([sent(40_000 * SECOND, NODE_NS, reset)]);
    assert_eq!(verdicts(&incidents), ["socket_gone state_lost inferred"]);
    assert!(incidents[0].prove.as_ref().is_some_and(|prove| prove.contains("newest recorded end")));
}

/// verdicts.md 10, t8.
#[test]
fn a_device_that_sends_rst_ack_at_the_same_idle_time() {
    let service = "192.0.2.7:5432";
    let events = (1..=4u64).flat_map(|n| {
        let ts = n * 1000 * SECOND;
        let mut socket = socket(n, &format!("10.0.0.2:{}", 40000 + n), service, ts - 300 * SECOND);
        socket.last_sent = socket.last_received;
        let isn = u32::try_from(n).expect("small") * 100_000_000;
        (socket.snd_una, socket.snd_nxt, socket.rcv_nxt) = (isn, isn, isn + 7_000_000);
        let packet = Packet {
            flow: socket.flow.reversed(),
            seq: socket.rcv_nxt,
            ack: socket.snd_nxt,
            payload: 0,
            flags: tcp_flag::RST | tcp_flag::ACK,
            ttl: 245,
        };
        let survived = Body::Survived { service: address(service), idle_s: 290.0 };
        let reset = ResetReceived { socket, packet: Some(packet) };
        [at(ts - 1, CLIENT_NS, survived), at(ts, CLIENT_NS, Body::ResetReceived(Box::new(reset)))]
    });
    let verdicts = verdicts_of(events);
    assert_eq!(verdicts[0], "peer_aborted remote inferred");
    assert_eq!(verdicts[1..], ["middlebox_idle_timeout timeout_mismatch inferred"; 3]);
}

/// A segment of a connection that moved here meets a listener with this accept queue (of 128) and
/// this time of the last SYN cookie.
fn moved_to_a_listener(queued: u32, cookies_sent: Option<Nanos>) -> Vec<String> {
    let mut reset = at_listener(data("203.0.113.5:40000", "10.0.0.9:3306"));
    let listener = reset.socket.as_mut().expect("set by the literal");
    (listener.ack_backlog, listener.max_ack_backlog) = (queued, 128);
    listener.cookies_sent = cookies_sent;
    verdicts_of([sent(100 * SECOND, NODE_NS, reset)])
}

/// verdicts.md 8, t9: no client of this host was refused.
#[test]
fn a_moved_connection_meets_a_listener_with_a_full_queue() {
    assert_eq!(moved_to_a_listener(129, None), ["unknown unknown none"]);
}

/// verdicts.md 8, t9.
#[test]
fn a_moved_connection_meets_a_listener_that_sent_cookies() {
    assert_eq!(moved_to_a_listener(0, Some(40 * SECOND)), ["unknown unknown none"]);
}

/// t9 at an idle listener: a scan of an open port with ACK segments looks like that.
#[test]
fn a_moved_connection_meets_an_idle_listener() {
    assert_eq!(moved_to_a_listener(0, None), ["unknown unknown none"]);
}

/// verdicts.md 11, t10: no packet was misdirected.
#[test]
fn a_flush_long_before_the_server_became_unreachable() {
    let mut client = socket(1, CLIENT, VIP, 40 * SECOND);
    client.retransmits = 15;
    let events = [
        conntrack_ended(50 * SECOND, conntrack_end(500 * SECOND, 4711)),
        failed(1000 * SECOND, CLIENT_NS, client, 110, &["tcp_write_timer"]),
    ];
    assert_eq!(verdicts_of(events), ["retransmission_timeout keepalive observed"]);
}

/// verdicts.md 10, t11: nothing was sent before.
#[test]
fn a_reset_that_answers_no_packet() {
    let mut socket = socket(1, CLIENT, "192.0.2.7:5432", 700 * SECOND);
    socket.last_sent = Some(700 * SECOND);
    assert_eq!(
        verdicts_of([received(1000 * SECOND, CLIENT_NS, socket)]),
        ["injected_reset remote inferred"]
    );
}

/// verdicts.md 10: RST|ACK in the name of a peer whose socket is on this host and lives.
#[test]
fn a_reset_in_the_name_of_a_socket_that_lives_on_this_host() {
    let reset = 1000 * SECOND;
    let victim = socket(1, CLIENT, SERVER, 999 * SECOND);
    let peer = |read, inode| {
        let socket = SocketState {
            flow: flow(SERVER, CLIENT),
            state: tcp_state::ESTABLISHED,
            inode,
            uid: 0,
            timer: None,
            retransmits: 0,
            receive_queue: 0,
            send_queue: 0,
            ages: None,
            bytes_received: None,
            bytes_acked: None,
            v6_only: false,
        };
        at(reset, SERVER_NS, Body::PeerSocket(Box::new(PeerSocket { read, socket })))
    };
    let found = |peer| verdicts_of([received(reset, CLIENT_NS, victim.clone()), peer]);
    assert_eq!(found(peer(reset + 1000, 77)), ["injected_reset remote observed"]);
    // Read before the reset, or held by no process: it may have sent it.
    for peer in [peer(reset - 1, 77), peer(reset + 1000, 0)] {
        assert_eq!(found(peer), ["peer_state_lost remote inferred"]);
    }
}

/// verdicts.md 6: a client whose host was restarted connects again from the same port.
#[test]
fn a_client_comes_back_from_the_port_of_its_old_connection() {
    let old = socket(5, SERVER, CLIENT, 900 * SECOND);
    let mut new = socket(9, CLIENT, SERVER, 0);
    new.state = tcp_state::SYN_SENT;
    (new.bytes_sent, new.bytes_received, new.last_received) = (0, 0, None);
    let challenge = Packet {
        flags: tcp_flag::ACK,
        payload: 0,
        seq: old.snd_nxt,
        ack: old.rcv_nxt,
        ..data(SERVER, CLIENT)
    };
    let mut reset = no_socket(challenge);
    (reset.socket, reset.reason) = (Some(new), Some("TCP_INVALID_ACK_SEQUENCE".into()));
    let events = [
        sent(1000 * SECOND, CLIENT_NS, reset),
        received(1000 * SECOND + 1000, SERVER_NS, old.clone()),
        failed(1000 * SECOND + 2000, SERVER_NS, old, 104, &["tcp_reset"]),
    ];
    assert_eq!(verdicts_of(events), ["socket_gone state_lost inferred"]);
}

/// verdicts.md 1, t12: with direct routing FIN_WAIT is the client's own FIN.
#[test]
fn a_late_fin_after_a_close_with_direct_routing() {
    let end = IpvsEnd { state: 4, flags: 3, last_packet: Some(100 * SECOND), ..ipvs_end(120.0) };
    let flags = tcp_flag::ACK | tcp_flag::FIN;
    let fin = Packet { flags, payload: 0, ..data(CLIENT, VIP) };
    let events = [ipvs_ended(220 * SECOND, end), sent(400 * SECOND, NODE_NS, no_socket(fin))];
    assert!(verdicts_of(events).is_empty());
}

/// verdicts.md 27, t14. Right as recorded, but the time per record grows with the number of wide
/// records: 4096 blocks each, searched one by one. Speed belongs to `cargo xtask bench`.
#[test]
fn sockets_with_the_widest_spans() {
    let events = (0..20u32).map(|n| {
        let local = format!("10.0.{n}.2:{}", 20000 + n);
        let mut socket = socket(u64::from(n), &local, &format!("10.9.{n}.1:80"), 1);
        (socket.snd_una, socket.snd_nxt, socket.rcv_nxt) = (0, u32::MAX - 1, 1 + n * 40_000);
        received(SECOND + u64::from(n), CLIENT_NS, socket)
    });
    let verdicts = verdicts_of(events);
    assert_eq!(verdicts, ["peer_state_lost remote inferred"; 20]);
}

/// verdicts.md 19: the limit was lowered while tracing, so raising it is not the fix.
#[test]
fn a_table_whose_limit_was_lowered_while_tracing() {
    let limits = |ts, max, count| {
        let table =
            ConntrackState { max: Some(max), count: Some(count), ..ConntrackState::default() };
        let state = NetnsState { inum: NODE_NS, conntrack: Some(table), ..NetnsState::default() };
        at(ts, NODE_NS, Body::Netns(Box::new(state)))
    };
    let syn = Packet { flags: tcp_flag::SYN, payload: 0, ack: 0, ..data(CLIENT, VIP) };
    let first_fix = |events: &[Event]| {
        let incidents = replay(events.iter().cloned());
        assert_eq!(verdicts(&incidents), ["conntrack_table_full capacity observed"]);
        (incidents[0].fixes[0].id, incidents[0].fixes[0].wanted.clone())
    };
    let full = [full_drop(100 * SECOND, syn), limits(100 * SECOND, 20, 20)];
    assert_eq!(first_fix(&full).0, "raise_conntrack_max");
    let lowered = [limits(SECOND, 8192, 19), full[0].clone(), full[1].clone()];
    assert_eq!(first_fix(&lowered), ("restore_conntrack_max", Some("8192".into())));
}

/// verdicts.md 19b: with direct routing the server's answer, which came after the expiry, did not pass through the entry.
#[test]
fn a_server_that_speaks_first_after_the_expiry_of_its_entry_with_direct_routing() {
    let end = IpvsEnd { flags: 3, last_packet: Some(30 * SECOND), ..ipvs_end(900.0) };
    let broke = 1000 * SECOND;
    let client = socket(1, CLIENT, VIP, broke - 1_000_000);
    let events = [
        ipvs_ended(930 * SECOND, end),
        sent(broke, NODE_NS, no_socket(data(CLIENT, VIP))),
        received(broke + 50_000, CLIENT_NS, client),
    ];
    assert_eq!(verdicts_of(events), ["ipvs_idle_expired timeout_mismatch observed"]);
}

/// verdicts.md 19d: another translation before IPVS, so that no entry shows the address that the client dialled.
#[test]
fn the_source_and_destination_are_what_the_client_dialled() {
    const DIALLED: &str = "192.168.7.7:30306";
    let mut events = article();
    let client = socket(1, CLIENT, DIALLED, 27 * SECOND);
    events[2] = received(1000 * SECOND + 50_000, CLIENT_NS, client.clone());
    events[3] = failed(1000 * SECOND + 90_000, CLIENT_NS, client, 104, &["tcp_reset"]);
    let incidents = replay(events);
    assert_eq!(verdicts(&incidents), ["ipvs_idle_expired timeout_mismatch observed"]);
    let it = &incidents[0];
    assert_eq!((it.source, it.destination), (address(CLIENT), address(DIALLED)));
    assert_eq!(it.destination_nat, Some(address(SERVER)));
}

/// verdicts.md 12: the server's socket died of an untranslated packet; a second later the client's next data meets the
/// listener.
#[test]
fn the_other_end_of_a_connection_that_an_invalid_packet_broke() {
    let broke = 1000 * SECOND;
    // Far outside the window, which is why conntrack judged it INVALID.
    let invalid = Packet { seq: 9_500_000, ack: 5000, payload: 10, ..data(SERVER, CLIENT) };
    let mut server = socket(5, SERVER, CLIENT, 999 * SECOND);
    (server.snd_una, server.snd_nxt, server.rcv_nxt) = (9000, 9000, 5000);
    let mut client = socket(1, CLIENT, VIP, 999 * SECOND);
    client.snd_nxt = 5043;
    let later = broke + 1_100_000_000;
    let mut at_server = at_listener(Packet { seq: 5000, ack: 9000, ..data(CLIENT, SERVER) });
    at_server.end = None;
    let events = [
        judged_invalid(broke, invalid),
        sent(broke + 1000, CLIENT_NS, no_socket(invalid)),
        received(broke + 2000, SERVER_NS, server.clone()),
        failed(broke + 3000, SERVER_NS, server, 104, &["tcp_reset"]),
        sent(later, SERVER_NS, at_server),
        received(later + 1000, CLIENT_NS, client.clone()),
        failed(later + 2000, CLIENT_NS, client, 104, &["tcp_reset"]),
    ];
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["conntrack_invalid", "+conntrack_invalid"]);
}

/// A NAT chain of NODE_NS is removed; `left` says whether another IPv4 chain is left. Then the client's retries run out.
fn nat_chain_removed(left: bool, translates: bool) -> Vec<String> {
    let removed = NatChainRemoved { family: 2, task: task("nft", 9), stack: Vec::new() };
    let families = Some(NatFamilies { v4: left, v6: true });
    let state = NetnsState { inum: NODE_NS, nat_families: families, ..NetnsState::default() };
    let original = flow(CLIENT, VIP);
    let reply = if translates { flow(SERVER, CLIENT) } else { original.reversed() };
    let entry = ConntrackEntry { original, reply, state: Some(3), left_s: Some(400_000) };
    let found = ConntrackFound { netns: NODE_NS, entries: vec![entry] };
    let lookup =
        StateLookup { packet: Some(original), conntrack: vec![found], ..StateLookup::default() };
    let broke = 1000 * SECOND;
    let mut client = socket(1, CLIENT, VIP, 700 * SECOND);
    client.retransmits = 15;
    verdicts_of([
        at(800 * SECOND, NODE_NS, Body::NatChainRemoved(Box::new(removed))),
        at(800 * SECOND, NODE_NS, Body::Netns(Box::new(state))),
        failed(broke, CLIENT_NS, client, 110, &["tcp_write_timer"]),
        at(broke, CLIENT_NS, Body::StateLookup(Box::new(lookup))),
    ])
}

#[test]
fn the_last_nat_chain_is_removed_under_a_translated_connection() {
    assert_eq!(nat_chain_removed(false, true), ["nat_removed state_lost correlated"]);
    let timeout = ["retransmission_timeout keepalive observed"];
    assert_eq!(nat_chain_removed(true, true), timeout, "another chain is left");
    assert_eq!(nat_chain_removed(false, false), timeout, "its entry does not translate it");
}
