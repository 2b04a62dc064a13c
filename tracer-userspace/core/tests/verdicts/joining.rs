//! Records of one connection from both ends: one incident, its repeats, and records of other connections.

use rsttrace_core::{
    correlator::Correlator,
    event::{Body, Event},
    incident::{Action, Incident, Victim},
    testing::{
        CLIENT, CLIENT_NS, NODE_NS, SECOND, SERVER, SERVER_NS, VIP, active, address, article, at,
        at_listener, causes, conntrack_end, conntrack_ended, data, failed, flow, full_drop,
        ipvs_end, ipvs_ended, no_socket, received, replay, sent, session, socket, task,
    },
    verdict::Confidence,
};
use rsttrace_model::{
    flow::Nanos,
    ipvs::{IpvsDestination, IpvsService, IpvsState},
    netns::NetnsState,
    tcp_flag,
};

#[test]
fn an_idle_connection_through_ipvs_is_one_observed_incident_with_its_nat_side() {
    let incidents = replay(article());
    assert_eq!(causes(&incidents), ["ipvs_idle_expired"]);
    let incident = &incidents[0];
    assert_eq!(incident.confidence, Some(Confidence::Observed));
    assert_eq!((incident.source, incident.destination), (address(CLIENT), address(VIP)));
    assert_eq!(incident.destination_nat, Some(address(SERVER)));
    assert_eq!(incident.errno, Some(104));
    assert_eq!(incident.victim, Victim::Source);
    assert_eq!(incident.idle_s.map(f64::round), Some(973.0));
    let fix = incident.fixes.first().expect("a fix");
    assert_eq!((fix.id, fix.wanted.as_deref()), ("keepalive_below_limit", Some("300/30/3")));
}

#[test]
fn the_order_in_which_both_ends_report_does_not_matter() {
    let expected = replay(article());
    for swap in [[0, 2, 3, 1], [0, 2, 1, 3], [0, 1, 3, 2]] {
        let events = article();
        let shuffled = swap.map(|index: usize| events[index].clone());
        let incidents = replay(shuffled);
        assert_eq!(causes(&incidents), causes(&expected), "{swap:?}");
    }
}

#[test]
fn an_expiry_is_not_the_cause_when_the_victim_received_from_its_peer_after_it() {
    let mut events = article();
    let alive = socket(1, CLIENT, VIP, 940 * SECOND);
    events[2] = received(1000 * SECOND, CLIENT_NS, alive);
    events.truncate(3);
    assert_eq!(causes(&replay(events)), ["socket_gone"]);
}

#[test]
fn the_abort_of_an_open_socket_is_not_explained_by_an_earlier_expiry() {
    let mut server = socket(5, SERVER, CLIENT, 990 * SECOND);
    server.unread = 5;
    let victim = socket(1, CLIENT, VIP, 27 * SECOND);
    let mut abort = active(server, &["tcp_send_active_reset", "__tcp_close"], "TCP_ABORT_ON_CLOSE");
    if let Some(server) = &mut abort.socket {
        (server.snd_nxt, server.rcv_nxt) = (9000, 5000);
    }
    let incidents = replay([
        ipvs_ended(930 * SECOND, ipvs_end(900.0)),
        received(1000 * SECOND, CLIENT_NS, victim),
        sent(1000 * SECOND + 1, SERVER_NS, abort),
    ]);
    assert_eq!(causes(&incidents), ["close_unread_data"]);
}

#[test]
fn a_reset_that_answers_a_syn_is_never_caused_by_a_lost_entry() {
    let mut syn = data(CLIENT, VIP);
    syn.flags = tcp_flag::SYN;
    syn.payload = 0;
    let incidents = replay([
        ipvs_ended(930 * SECOND, ipvs_end(900.0)),
        sent(1000 * SECOND, NODE_NS, no_socket(syn)),
    ]);
    assert_eq!(causes(&incidents), ["connection_refused"]);
}

#[test]
fn the_event_id_does_not_depend_on_the_verdict() {
    let explained = replay(article());
    let unexplained = replay(article().into_iter().skip(1));
    assert_ne!(causes(&explained), causes(&unexplained));
    assert_eq!(explained[0].event_id, unexplained[0].event_id);
}

#[test]
fn the_other_end_of_a_deleted_nat_entry_follows_minutes_later() {
    // The server sends first: its segment reaches the client untranslated.
    let server = socket(2, SERVER, CLIENT, 10 * SECOND);
    let mut segment = data(SERVER, CLIENT);
    (segment.seq, segment.ack) = (9000, 5000);
    let mut victim = server.clone();
    (victim.snd_nxt, victim.rcv_nxt) = (9043, 5000);
    let late = 400 * SECOND;
    let incidents = replay([
        conntrack_ended(100 * SECOND, conntrack_end(500 * SECOND, 4711)),
        sent(101 * SECOND, CLIENT_NS, no_socket(segment)),
        received(101 * SECOND + 1, SERVER_NS, victim),
        sent(late, SERVER_NS, at_listener(data(CLIENT, SERVER))),
        received(late + 1, CLIENT_NS, socket(1, CLIENT, VIP, 10 * SECOND)),
    ]);
    assert_eq!(causes(&incidents), ["conntrack_deleted", "+conntrack_deleted"]);
    assert_eq!(incidents[1].follows.as_deref(), Some(incidents[0].event_id.as_str()));
    assert_eq!(incidents[0].victim, Victim::Destination);
}

#[test]
fn both_ends_of_a_balanced_connection_that_fail_together_are_one_incident() {
    let mut events = article();
    let broke = 1000 * SECOND;
    let mut segment = data(SERVER, CLIENT);
    (segment.seq, segment.ack) = (9000, 5000);
    let mut server = socket(2, SERVER, CLIENT, 27 * SECOND);
    (server.snd_nxt, server.rcv_nxt) = (9043, 5000);
    events.push(sent(broke + 1_000_000, CLIENT_NS, no_socket(segment)));
    events.push(received(broke + 1_100_000, SERVER_NS, server));
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["ipvs_idle_expired"]);
    assert_eq!(incidents[0].victim, Victim::Both);
}

#[test]
fn resets_that_answer_retries_are_not_further_incidents() {
    let retry = |ts| sent(ts, NODE_NS, no_socket(data(CLIENT, VIP)));
    let mut events = article();
    events.extend((1001..1010).map(|second| retry(second * SECOND)));
    assert_eq!(causes(&replay(events)), ["ipvs_idle_expired"]);
}

#[test]
fn equal_tuples_in_other_namespaces_are_other_connections() {
    let mut events = article();
    let mut other = socket(7, CLIENT, VIP, 999 * SECOND);
    (other.snd_nxt, other.rcv_nxt) = (1_500_000_000, 2_500_000_000);
    events.push(received(1000 * SECOND + 100_000, 99, other));
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["ipvs_idle_expired", "peer_state_lost"]);
}

#[test]
fn a_tuple_reused_at_once_is_another_connection() {
    // 50 ms later both initial sequence numbers have moved on by 780 000.
    let later = 1000 * SECOND + 50_000_000;
    let moved = 780_000;
    let mut again = socket(8, CLIENT, VIP, later);
    (again.snd_una, again.snd_nxt, again.rcv_nxt) = (5000 + moved, 5000 + moved, 9000 + moved);
    let mut closer = socket(9, SERVER, CLIENT, later);
    (closer.snd_una, closer.snd_nxt, closer.rcv_nxt) = (9000 + moved, 9000 + moved, 5000 + moved);
    closer.linger_zero = true;
    let stack = ["tcp_send_active_reset", "tcp_disconnect", "__tcp_close"];
    let mut events = article();
    events.push(received(later, CLIENT_NS, again));
    events.push(sent(later + 1, SERVER_NS, active(closer, &stack, "TCP_STATE")));
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["ipvs_idle_expired", "linger_zero"]);
}

#[test]
fn two_victims_with_equal_sequence_numbers_are_two_connections() {
    let other = socket(2, "10.9.0.2:41000", "10.9.9.9:443", 999 * SECOND);
    let incidents = replay([
        received(1000 * SECOND, CLIENT_NS, socket(1, CLIENT, SERVER, 999 * SECOND)),
        received(1000 * SECOND + 1, 77, other),
    ]);
    assert_eq!(causes(&incidents), ["peer_state_lost", "peer_state_lost"]);
}

#[test]
fn a_packet_dropped_by_a_full_table_opens_and_its_timeout_follows() {
    let mut syn = data(CLIENT, VIP);
    (syn.flags, syn.ack, syn.payload) = (tcp_flag::SYN, 0, 0);
    let mut connecting = socket(1, CLIENT, VIP, 0);
    (connecting.last_received, connecting.rcv_nxt) = (None, 0);
    (connecting.bytes_sent, connecting.bytes_received) = (0, 0);
    let incidents = replay([
        full_drop(10 * SECOND, syn),
        full_drop(11 * SECOND, syn),
        failed(13 * SECOND, CLIENT_NS, connecting, 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&incidents), ["conntrack_table_full", "+conntrack_table_full"]);
    assert_eq!(incidents[0].action, Action::Drop);
    assert_eq!(incidents[0].source, address(CLIENT));
}

/// The state of the node: VIP is an IPVS service with this timeout.
fn service(timeout_s: u32) -> Event {
    let destinations =
        vec![IpvsDestination { ip: address(SERVER).ip(), port: 3306, weight: 1, forward: 0 }];
    let service = IpvsService {
        ip: address(VIP).ip(),
        port: 3306,
        fwmark: 0,
        protocol: 6,
        scheduler: "rr".into(),
        destinations,
    };
    let ipvs = IpvsState {
        timeout_tcp_s: Some(timeout_s),
        services: Some(vec![service]),
        ..IpvsState::default()
    };
    let state = NetnsState { inum: NODE_NS, ipvs: Some(ipvs), ..NetnsState::default() };
    at(1000 * SECOND, NODE_NS, Body::Netns(Box::new(state)))
}

/// The incident of the article, where tracing began at `started` and the expiry is not on record.
fn unseen_expiry(started: Nanos, idle_s: u64) -> Vec<Incident> {
    let mut correlator = Correlator::new();
    correlator.push(session(started));
    let victim = socket(1, CLIENT, VIP, (1000 - idle_s) * SECOND);
    correlator.push(sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    correlator.push(service(900));
    correlator.push(received(1000 * SECOND + 1, CLIENT_NS, victim));
    correlator.finish()
}

#[test]
fn an_expiry_before_tracing_began_is_inferred_with_a_test_that_confirms_it() {
    let incidents = unseen_expiry(980 * SECOND, 973);
    assert_eq!(causes(&incidents), ["ipvs_idle_expired"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Inferred));
    assert!(incidents[0].prove.is_some());
}

#[test]
fn an_expiry_that_would_have_been_seen_is_not_inferred() {
    let incidents = unseen_expiry(100 * SECOND, 880);
    assert_ne!(causes(&incidents), ["ipvs_idle_expired"], "idle for less than the limit");
    let incidents = unseen_expiry(20 * SECOND, 950);
    assert_ne!(causes(&incidents), ["ipvs_idle_expired"], "the expiry came after tracing began");
}

#[test]
fn a_conntrack_entry_that_ipvs_deleted_with_its_own_is_an_ipvs_loss() {
    let mut events = article();
    let mut taken = conntrack_end(2000 * SECOND, 0);
    taken.stack = rsttrace_core::testing::stack(&["nf_ct_delete", "ip_vs_conn_drop_conntrack"]);
    events.insert(1, conntrack_ended(930 * SECOND + 1, taken));
    assert_eq!(causes(&replay(events)), ["ipvs_idle_expired"]);
}

#[test]
fn the_error_of_the_closing_socket_after_linger_zero_is_not_a_second_victim() {
    let mut closer = socket(5, SERVER, CLIENT, 990 * SECOND);
    (closer.snd_nxt, closer.rcv_nxt, closer.linger_zero) = (9000, 5000, true);
    let mut own_error = closer.clone();
    own_error.flow = flow(SERVER, "0.0.0.0:0");
    let victim = socket(1, CLIENT, SERVER, 990 * SECOND);
    let stack = ["tcp_send_active_reset", "tcp_disconnect", "__tcp_close"];
    let incidents = replay([
        received(1000 * SECOND, CLIENT_NS, victim.clone()),
        failed(1000 * SECOND + 1, CLIENT_NS, victim, 104, &["tcp_reset"]),
        sent(1000 * SECOND + 2, SERVER_NS, active(closer, &stack, "TCP_STATE")),
        failed(1000 * SECOND + 3, SERVER_NS, own_error, 104, &["tcp_disconnect"]),
    ]);
    assert_eq!(causes(&incidents), ["linger_zero"]);
    assert_eq!(incidents[0].victim, Victim::Source);
}

#[test]
fn a_killed_owner_is_distinguished_from_one_that_closed() {
    let mut server = socket(5, SERVER, CLIENT, 990 * SECOND);
    (server.snd_nxt, server.rcv_nxt, server.unread) = (9000, 5000, 12);
    let mut abort = active(server, &["__tcp_close"], "TCP_ABORT_ON_CLOSE");
    abort.task = rsttrace_core::event::Task { exiting: true, exit_code: 9, ..task("mysqld", 3) };
    let incidents = replay([sent(SECOND, SERVER_NS, abort)]);
    assert_eq!(causes(&incidents), ["process_killed"]);
}

#[test]
fn a_repeated_inference_keeps_its_test() {
    let mut c = Correlator::new();
    c.push(session(980 * SECOND));
    c.push(sent(1000 * SECOND, NODE_NS, no_socket(data(CLIENT, VIP))));
    c.push(service(900));
    c.push(received(1000 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 27 * SECOND)));
    let mut all = c.tick(1001 * SECOND);
    // IPVS direct routing: the server has the same tuple.
    let mut srv = socket(2, VIP, CLIENT, 27 * SECOND);
    (srv.snd_una, srv.snd_nxt, srv.rcv_nxt) = (9000, 9000, 5000);
    c.push(failed(3000 * SECOND, SERVER_NS, srv, 110, &["tcp_keepalive_timer"]));
    all.extend(c.finish());
    assert_eq!(causes(&all), ["ipvs_idle_expired", "+ipvs_idle_expired"]);
    assert_eq!(all[1].confidence, Some(Confidence::Inferred));
    assert!(
        all[1].prove.is_some(),
        "an inferred verdict needs a test; evidence kinds {:?}",
        all[1].evidence.iter().map(|f| f.kind).collect::<Vec<_>>()
    );
}

#[test]
fn a_repeat_does_not_take_the_test_of_another_cause() {
    let server = socket(2, SERVER, CLIENT, 10 * SECOND);
    let mut segment = data(SERVER, CLIENT);
    (segment.seq, segment.ack) = (9000, 5000);
    let mut victim = server.clone();
    (victim.snd_nxt, victim.rcv_nxt) = (9043, 5000);
    let late = 400 * SECOND;
    let i = replay([
        conntrack_ended(100 * SECOND, conntrack_end(500 * SECOND, 4711)),
        sent(101 * SECOND, CLIENT_NS, no_socket(segment)),
        received(101 * SECOND + 1, SERVER_NS, victim),
        // The client received an answer on the open socket at 150 s (keepalive through a new
        // entry), so the loss no longer fits.
        sent(late, SERVER_NS, at_listener(data(CLIENT, SERVER))),
        received(late + 1, CLIENT_NS, socket(1, CLIENT, VIP, 150 * SECOND)),
    ]);
    assert!(i[1].prove.is_none());
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
