//! IPVS: services without a server, removed servers, lost entries, and similar streams with other causes.

use rsttrace_core::{
    correlator::Correlator,
    event::{Body, Event, IpvsEnd, Packet, ResetSent, Socket, SocketEnd},
    incident::{Action, Victim},
    testing::*,
    verdict::Confidence,
};
use rsttrace_model::{
    flow::Nanos,
    ipvs::{IpvsDestination, IpvsService, IpvsState},
    netns::NetnsState,
    tcp_flag, tcp_state,
};

fn syn() -> Packet {
    Packet { flags: tcp_flag::SYN, ack: 0, payload: 0, ..data(CLIENT, VIP) }
}

fn connecting() -> Socket {
    let mut socket = socket(1, CLIENT, VIP, 0);
    socket.state = tcp_state::SYN_SENT;
    (socket.last_received, socket.rcv_nxt) = (None, 0);
    (socket.bytes_sent, socket.bytes_received) = (0, 0);
    socket
}

/// VIP is an IPVS service of the node with these servers and weights.
fn service(ts: Nanos, servers: &[(&str, u32)]) -> Event {
    let destination = |&(server, weight): &(&str, u32)| {
        let server = address(server);
        IpvsDestination { ip: server.ip(), port: server.port(), weight, forward: 0 }
    };
    let service = IpvsService {
        ip: address(VIP).ip(),
        port: address(VIP).port(),
        fwmark: 0,
        protocol: 6,
        scheduler: "rr".into(),
        destinations: servers.iter().map(destination).collect(),
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
fn a_service_without_a_server_is_not_a_closed_port() {
    let incidents = replay([
        no_server_drop(10 * SECOND, syn()),
        service(10 * SECOND, &[]),
        failed(10 * SECOND + 90_000, CLIENT_NS, connecting(), 111, &["tcp_v4_err"]),
    ]);
    assert_eq!(causes(&incidents), ["no_backend"]);
    let incident = &incidents[0];
    assert_eq!(incident.confidence, Some(Confidence::Observed));
    assert_eq!((incident.source, incident.destination), (address(CLIENT), address(VIP)));
    assert_eq!((incident.action, incident.errno), (Action::Drop, Some(111)));
    assert_eq!(incident.victim, Victim::Source);
    assert!(incident.why.ends_with("had no real server"), "{}", incident.why);
}

#[test]
fn servers_of_weight_zero_are_counted() {
    let servers = [(SERVER, 0), ("10.0.1.3:3306", 0)];
    let incidents = replay([no_server_drop(10 * SECOND, syn()), service(10 * SECOND, &servers)]);
    assert_eq!(causes(&incidents), ["no_backend"]);
    assert!(
        incidents[0].why.ends_with("only 2 real servers, all with weight 0"),
        "{}",
        incidents[0].why
    );
}

#[test]
fn a_refused_connect_of_a_remote_client_is_reported_once_despite_its_retries() {
    let mut events: Vec<Event> =
        [10, 11, 13, 17].map(|second| no_server_drop(second * SECOND, syn())).into();
    let next_attempt = Packet { seq: 7_000_000, ..syn() };
    events.push(no_server_drop(60 * SECOND, next_attempt));
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["no_backend", "no_backend"]);
    assert_eq!((incidents[0].action, incidents[0].errno), (Action::Drop, None));
    assert_eq!(incidents[0].victim, Victim::Source);
}

#[test]
fn the_timeout_of_a_connect_without_a_refusal_follows_its_dropped_syn() {
    let incidents = replay([
        no_server_drop(10 * SECOND, syn()),
        no_server_drop(11 * SECOND, syn()),
        failed(13 * SECOND, CLIENT_NS, connecting(), 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&incidents), ["no_backend", "+no_backend"]);
}

#[test]
fn a_server_that_refuses_is_not_a_missing_server() {
    let mut refusal = received(10 * SECOND + 1, CLIENT_NS, connecting());
    if let Body::ResetReceived(it) = &mut refusal.body {
        let packet = Packet { flags: 4 | tcp_flag::ACK, ack: 5001, ..data(VIP, CLIENT) };
        it.packet = Some(Packet { seq: 0, payload: 0, ..packet });
    }
    let incidents = replay([
        service(10 * SECOND, &[(SERVER, 1)]),
        sent(10 * SECOND, SERVER_NS, no_socket(Packet { flow: flow(CLIENT, SERVER), ..syn() })),
        refusal,
        failed(10 * SECOND + 1, CLIENT_NS, connecting(), 111, &["tcp_reset"]),
    ]);
    assert_eq!(causes(&incidents), ["connection_refused"]);
}

#[test]
fn a_refusal_whose_packet_was_not_readable_is_one_incident_behind_nat() {
    let mut refusal = received(10 * SECOND + 1, CLIENT_NS, connecting());
    if let Body::ResetReceived(it) = &mut refusal.body {
        it.packet = None;
        it.socket.snd_nxt = 5001;
    }
    let incidents = replay([
        sent(10 * SECOND, SERVER_NS, no_socket(Packet { flow: flow(CLIENT, SERVER), ..syn() })),
        refusal,
    ]);
    assert_eq!(causes(&incidents), ["connection_refused"]);
}

#[test]
fn an_old_refusal_of_the_same_ports_does_not_explain_a_later_timeout() {
    let mut later = connecting();
    (later.snd_una, later.snd_nxt) = (90_000_000, 90_000_001);
    let incidents = replay([
        no_server_drop(10 * SECOND, syn()),
        failed(5000 * SECOND, CLIENT_NS, later, 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&incidents), ["no_backend", "retransmission_timeout"]);
}

/// CLIENT last received at 100 s, retransmits `retransmits` times and times out.
fn gave_up(ts: Nanos, retransmits: u8) -> Event {
    let mut client = socket(1, CLIENT, VIP, 100 * SECOND);
    client.retransmits = retransmits;
    failed(ts, CLIENT_NS, client, 110, &["tcp_write_timeout", "tcp_retransmit_timer"])
}

#[test]
fn a_drop_without_an_answer_for_a_removed_server_shows_which_process_removed_it() {
    let incidents =
        replay([server_removed(200 * SECOND), gave_up(300 * SECOND, 5), ipvs_orphan(300 * SECOND)]);
    assert_eq!(causes(&incidents), ["ipvs_server_removed"]);
    let incident = &incidents[0];
    assert_eq!(incident.confidence, Some(Confidence::Observed));
    assert_eq!((incident.action, incident.errno), (Action::Timeout, Some(110)));
    assert_eq!((incident.source, incident.destination), (address(CLIENT), address(VIP)));
    assert_eq!(incident.destination_nat, Some(address(SERVER)));
    assert!(incident.why.starts_with("ipvsadm (pid 321)"), "{}", incident.why);
    assert!(incident.fixes.iter().any(|fix| fix.id == "reset_instead_of_hang"));
}

#[test]
fn an_entry_without_its_server_is_inferred_when_the_removal_is_not_on_record() {
    let incidents = replay([gave_up(300 * SECOND, 5), ipvs_orphan(300 * SECOND)]);
    assert_eq!(causes(&incidents), ["ipvs_server_removed"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Inferred));
}

#[test]
fn packets_dropped_for_a_removed_server_between_two_remote_ends_are_reported_once() {
    let dropped = |ts| no_destination_drop(ts, data(CLIENT, VIP));
    let found = 202 * SECOND;
    let incidents = replay([
        server_removed(200 * SECOND),
        dropped(201 * SECOND),
        dropped(found),
        ipvs_orphan(found),
        dropped(204 * SECOND),
        ipvs_orphan(204 * SECOND),
    ]);
    assert_eq!(causes(&incidents), ["ipvs_server_removed"]);
    let incident = &incidents[0];
    assert_eq!((incident.action, incident.errno), (Action::Drop, None));
    assert_eq!((incident.source, incident.destination), (address(CLIENT), address(VIP)));
    assert_eq!(incident.destination_nat, Some(address(SERVER)));
    assert_eq!(incident.confidence, Some(Confidence::Observed));
    assert_eq!(incident.victim, Victim::Source);
    assert_eq!((incident.rst.direction, incident.rst.origin), ("none", Some("none")));
}

#[test]
fn a_packet_dropped_at_a_service_that_lost_another_server_is_not_an_incident() {
    let dropped = no_destination_drop(202 * SECOND, data(CLIENT, VIP));
    let removed = server_removed(200 * SECOND);
    assert!(replay([removed.clone(), dropped.clone()]).is_empty());
    // The drop does not explain a reset either.
    let reset = || article().into_iter().skip(1);
    let dropped = no_destination_drop(1000 * SECOND - 1, data(CLIENT, VIP));
    let with_drop = replay([removed, dropped].into_iter().chain(reset()));
    assert_eq!(causes(&with_drop), causes(&replay(reset())));
}

#[test]
fn clearing_the_table_drops_the_entries_and_deleting_a_service_removes_its_servers() {
    let flush =
        ["__ip_vs_del_dest", "ip_vs_unlink_service", "ip_vs_flush.isra.0", "ip_vs_genl_set_cmd"];
    let service = ["__ip_vs_del_dest", "__ip_vs_del_service", "ip_vs_del_service"];
    for (functions, cause, says, fix) in [
        (&flush[..], "ipvs_entry_dropped", "cleared the IPVS table", "keep_the_services"),
        (&service[..], "ipvs_server_removed", "deleted its IPVS service", "drain_before_removal"),
    ] {
        let removal = |ts| server_removed_by(ts, functions);
        let mut reset = ended_below(&["ip_vs_conn_expire", "ip_vs_expire_nodest_conn_flush"]);
        reset.insert(0, removal(929 * SECOND));
        let hung = vec![removal(200 * SECOND), gave_up(300 * SECOND, 5), ipvs_orphan(300 * SECOND)];
        let dropped = vec![
            removal(200 * SECOND),
            no_destination_drop(202 * SECOND, data(CLIENT, VIP)),
            ipvs_orphan(202 * SECOND),
        ];
        for (events, action) in
            [(reset, Action::Reset), (hung, Action::Timeout), (dropped, Action::Drop)]
        {
            let incidents = replay(events);
            assert_eq!(causes(&incidents), [cause]);
            assert_eq!(incidents[0].action, action);
            let why = &incidents[0].why;
            assert!(why.starts_with("ipvsadm (pid 321)") && why.contains(says), "{why}");
            assert_eq!(incidents[0].fixes[0].id, fix);
        }
    }
}

#[test]
fn an_entry_that_arrived_too_late_for_one_retry_explains_the_next() {
    let mut correlator = Correlator::new();
    correlator.push(session(0));
    correlator.push(server_removed(200 * SECOND));
    correlator.push(no_destination_drop(202 * SECOND, data(CLIENT, VIP)));
    assert!(correlator.tick(203 * SECOND).is_empty());
    // The entry has the time of the packet that it was read for.
    correlator.push(ipvs_orphan(202 * SECOND));
    correlator.push(no_destination_drop(204 * SECOND, data(CLIENT, VIP)));
    assert_eq!(causes(&correlator.finish()), ["ipvs_server_removed"]);
}

#[test]
fn without_a_service_the_stack_answers_and_the_removal_of_the_last_service_is_named() {
    let reset = || article().into_iter().skip(1);
    let with_removal = |functions: &[&str], ts| {
        replay(std::iter::once(server_removed_by(ts, functions)).chain(reset()))
    };
    let flush = ["__ip_vs_del_dest", "ip_vs_unlink_service", "ip_vs_flush"];
    let service = ["__ip_vs_del_dest", "ip_vs_unlink_service", "do_ip_vs_set_ctl"];
    let cleared = with_removal(&flush, 500 * SECOND);
    assert_eq!(causes(&cleared), ["ipvs_entry_dropped"]);
    assert_eq!(cleared[0].confidence, Some(Confidence::Correlated));
    assert_eq!(causes(&with_removal(&service, 500 * SECOND)), ["ipvs_server_removed"]);
    // The client has received from its peer since, or the service still has other servers.
    assert_ne!(causes(&with_removal(&flush, 10 * SECOND)), ["ipvs_entry_dropped"]);
    let one = with_removal(&["__ip_vs_del_dest", "ip_vs_del_dest"], 500 * SECOND);
    assert_ne!(causes(&one), ["ipvs_server_removed"]);
}

#[test]
fn keepalive_that_fails_at_a_removed_server_is_caused_by_the_removal() {
    let mut client = socket(1, CLIENT, VIP, 100 * SECOND);
    (client.keepalive.enabled, client.probes_out) = (true, 9);
    let incidents = replay([
        server_removed(200 * SECOND),
        failed(1900 * SECOND, CLIENT_NS, client, 110, &["tcp_keepalive_timer"]),
        ipvs_orphan(1900 * SECOND),
    ]);
    assert_eq!(causes(&incidents), ["ipvs_server_removed"]);
}

#[test]
fn a_server_removed_because_it_did_not_answer_is_not_the_cause() {
    // Six waits of 0.2 s and more: the server had not answered for 12 s.
    let incidents =
        replay([server_removed(295 * SECOND), gave_up(300 * SECOND, 5), ipvs_orphan(300 * SECOND)]);
    assert_eq!(causes(&incidents), ["retransmission_timeout"]);
}

#[test]
fn a_removal_without_an_entry_of_the_connection_does_not_explain_a_timeout() {
    let incidents = replay([server_removed(200 * SECOND), gave_up(300 * SECOND, 5)]);
    assert_eq!(causes(&incidents), ["retransmission_timeout"]);
}

#[test]
fn an_entry_found_for_an_earlier_timeout_does_not_explain_a_later_one() {
    let mut later = socket(8, CLIENT, VIP, 2000 * SECOND);
    (later.snd_una, later.snd_nxt, later.rcv_nxt) = (90_000_000, 90_000_100, 70_000_000);
    let incidents = replay([
        gave_up(300 * SECOND, 5),
        ipvs_orphan(300 * SECOND),
        failed(3000 * SECOND, CLIENT_NS, later, 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&incidents), ["ipvs_server_removed", "retransmission_timeout"]);
}

/// The incident of the article, where the entry had no server when it expired.
fn expired_without_server() -> Vec<Event> {
    let mut events = article();
    events[0] = ipvs_ended(930 * SECOND, IpvsEnd { server_gone: true, ..ipvs_end(900.0) });
    events
}

#[test]
fn an_entry_that_expired_after_its_server_was_removed_is_not_an_idle_expiry() {
    let mut events = expired_without_server();
    let incidents = replay(events.clone());
    assert_eq!(causes(&incidents), ["ipvs_server_removed"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Correlated));
    events.insert(0, server_removed(500 * SECOND));
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["ipvs_server_removed"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Observed));
}

#[test]
fn the_removal_of_a_server_that_was_added_again_does_not_explain_an_expiry() {
    let mut events = article();
    events.insert(0, server_removed(500 * SECOND));
    assert_eq!(causes(&replay(events)), ["ipvs_idle_expired"]);
}

/// The incident of the article, where the entry ended below these functions.
fn ended_below(functions: &[&str]) -> Vec<Event> {
    let mut events = article();
    let end = IpvsEnd { stack: stack(functions), ..ipvs_end(900.0) };
    events[0] = ipvs_ended(930 * SECOND, end);
    events
}

#[test]
fn the_drop_entry_defence_is_named_and_can_be_switched_off() {
    let incidents = replay(ended_below(&[
        "ip_vs_conn_expire",
        "ip_vs_random_dropentry",
        "defense_work_handler",
    ]));
    assert_eq!(causes(&incidents), ["ipvs_entry_dropped"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Observed));
    assert_eq!(incidents[0].fixes[0].id, "switch_drop_entry_off");
}

#[test]
fn a_flush_is_named_even_though_it_removes_the_servers_first() {
    let flush = ["ip_vs_conn_expire", "ip_vs_conn_net_cleanup", "__ip_vs_cleanup_batch"];
    for (caller, says) in [
        ("cleanup_net", "its network namespace ended"),
        ("__do_sys_delete_module.constprop.0", "unloaded ip_vs"),
    ] {
        let mut events = ended_below(&[&flush[..], &[caller]].concat());
        if let Body::IpvsEnd(end) = &mut events[0].body {
            end.server_gone = true;
        }
        events.insert(0, server_removed(929 * SECOND));
        let incidents = replay(events);
        assert_eq!(causes(&incidents), ["ipvs_entry_dropped"], "{caller}");
        assert!(incidents[0].why.contains(says), "{}", incidents[0].why);
    }
}

/// The TCP stack of a director resets a mid-stream packet of a connection that is not on record.
fn without_an_entry(idle_s: u64, end: Option<SocketEnd>) -> Vec<Event> {
    let broke = 1000 * SECOND;
    vec![
        sent(broke, NODE_NS, ResetSent { end, ..no_socket(data(CLIENT, VIP)) }),
        service(broke, &[(SERVER, 1)]),
        received(broke + 1, CLIENT_NS, socket(1, CLIENT, VIP, (1000 - idle_s) * SECOND)),
    ]
}

#[test]
fn a_director_that_never_had_the_entry_is_inferred_with_a_test_that_confirms_it() {
    let incidents = replay(without_an_entry(20, None));
    assert_eq!(causes(&incidents), ["ipvs_entry_dropped"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Inferred));
    assert!(incidents[0].prove.is_some());
}

#[test]
fn a_server_on_the_director_itself_is_not_a_failover() {
    let end = SocketEnd {
        ts: 990 * SECOND,
        task: task("mysqld", 7),
        err: 0,
        old_state: tcp_state::ESTABLISHED,
        new_state: 4,
        idle_s: None,
    };
    assert_eq!(causes(&replay(without_an_entry(20, Some(end)))), ["socket_gone"]);
}

#[test]
fn an_unmatched_ack_to_a_service_is_not_a_failover() {
    let ack = Packet { payload: 0, flags: tcp_flag::ACK, ..data(CLIENT, VIP) };
    let incidents = replay([
        sent(1000 * SECOND, NODE_NS, no_socket(ack)),
        service(1000 * SECOND, &[(SERVER, 1)]),
    ]);
    assert_eq!(causes(&incidents), ["unknown"]);
}

#[test]
fn a_connect_that_timed_out_at_a_full_ipvs_table_names_it_and_what_to_raise() {
    let table_of = |conns| {
        let mut state = service(300 * SECOND, &[(SERVER, 1)]);
        if let Body::Netns(netns) = &mut state.body
            && let Some(ipvs) = &mut netns.ipvs
        {
            (ipvs.conns, ipvs.conn_max) = (Some(conns), Some(2));
        }
        state
    };
    let names_conn_max = |failure: Event, conns| {
        let incidents = replay([failure, table_of(conns)]);
        assert_eq!(causes(&incidents), ["retransmission_timeout"]);
        let names_it = incidents[0].evidence.iter().any(|it| it.summary.contains("conn_max"));
        assert_eq!(names_it, incidents[0].fixes[0].id == "raise_ipvs_conn_max");
        names_it
    };
    let connect = || failed(300 * SECOND, CLIENT_NS, connecting(), 110, &["tcp_retransmit_timer"]);
    assert!(names_conn_max(connect(), 2));
    assert!(!names_conn_max(connect(), 1), "there is room");
    assert!(!names_conn_max(gave_up(300 * SECOND, 5), 2), "it had been let in");
}
