//! Streams about connections that are older than the tracer.

use rsttrace_core::{
    correlator::Correlator,
    event::{Body, Event, Socket},
    incident::{Incident, Victim},
    testing::*,
    verdict::Confidence,
};
use rsttrace_model::{
    conntrack::{ConntrackEntry, ConntrackState, ConntrackTcpTimeouts},
    flow::{Flow, Nanos},
    ipvs::{IpvsDestination, IpvsEntry, IpvsService, IpvsState, IpvsTable},
    lookup::{ConntrackFound, InitialState, IpvsFound, StateLookup},
    netns::NetnsState,
    owner::Opener,
    socket::{SocketAges, SocketList, SocketState},
    tcp_state,
};

/// Two ports of the ephemeral range.
const LOW: &str = "10.0.0.2:40000";
const HIGH: &str = "10.0.1.2:50000";

/// A namespace in which sockets listen at these addresses.
fn listening(netns: u32, addresses: &[&str]) -> Event {
    let listeners = addresses.iter().map(|text| address(text)).collect();
    let state = NetnsState { inum: netns, listeners: Some(listeners), ..NetnsState::default() };
    at(SECOND, netns, Body::Netns(Box::new(state)))
}

/// `local` receives a reset without ACK in the client's namespace.
fn broken(local: &str, remote: &str) -> Event {
    received(10 * SECOND, CLIENT_NS, socket(1, local, remote, 9 * SECOND))
}

/// The end that the verdict takes for the initiator.
fn source(events: impl IntoIterator<Item = Event>) -> String {
    replay(events).first().map(|incident| incident.source.to_string()).unwrap_or_default()
}

#[test]
fn of_two_ephemeral_ports_the_one_that_listens_is_the_destination() {
    for listener in [LOW, "0.0.0.0:40000"] {
        let events = [listening(CLIENT_NS, &[listener]), broken(LOW, HIGH)];
        assert_eq!(source(events), HIGH, "{listener}");
    }
    let events = [listening(CLIENT_NS, &["0.0.0.0:50000"]), broken(HIGH, LOW)];
    assert_eq!(source(events), LOW);
}

#[test]
fn of_two_ephemeral_ports_the_one_that_never_listened_is_the_source() {
    for local in [LOW, HIGH] {
        let remote = if local == LOW { HIGH } else { LOW };
        let events = [listening(CLIENT_NS, &["0.0.0.0:22"]), broken(local, remote)];
        assert_eq!(source(events), local);
    }
}

#[test]
fn of_two_ephemeral_ports_the_one_that_a_process_connected_is_the_source() {
    let opener = Some(Opener { pid: 7, comm: "mysql".into(), start_boottime_ns: 1, cgroup: 0 });
    for (local, remote) in [(LOW, HIGH), (HIGH, LOW)] {
        // With and without the listeners of its namespace.
        for listeners in [None, Some(listening(CLIENT_NS, &["0.0.0.0:22"]))] {
            let victim = Socket { opener: opener.clone(), ..socket(1, local, remote, 9 * SECOND) };
            let broken = received(10 * SECOND, CLIENT_NS, victim);
            assert_eq!(source(listeners.into_iter().chain([broken])), local);
        }
    }
}

#[test]
fn a_listener_that_closed_with_its_connections_is_still_the_destination() {
    let events =
        [listening(CLIENT_NS, &["0.0.0.0:40000"]), listening(CLIENT_NS, &[]), broken(LOW, HIGH)];
    assert_eq!(source(events), HIGH);
}

#[test]
fn a_closed_listener_with_a_known_port_is_not_the_source() {
    let events = [listening(CLIENT_NS, &[]), broken("10.0.0.2:3306", HIGH)];
    assert_eq!(source(events), HIGH);
}

#[test]
fn both_ends_agree_on_who_listens() {
    // The client's end is recorded first, and the listeners of its namespace are unknown.
    let mut packet = data(HIGH, LOW);
    (packet.seq, packet.ack) = (5000, 9000);
    let victim = received(10 * SECOND, SERVER_NS, socket(1, HIGH, LOW, 9 * SECOND));
    let answered = sent(10 * SECOND + 1, CLIENT_NS, at_listener(packet));
    let mut unbound = no_socket(packet);
    unbound.reason = Some("NO_SOCKET".into());
    let by_stack = sent(10 * SECOND + 1, CLIENT_NS, unbound);
    for answer in [answered, by_stack] {
        let events = [listening(CLIENT_NS, &["0.0.0.0:40000"]), victim.clone(), answer];
        let incidents = replay(events);
        assert_eq!(incidents[0].destination, address(LOW));
        assert_eq!(incidents.len(), 1);
    }
}

#[test]
fn without_a_known_listener_both_ends_give_the_same_source() {
    assert_eq!(source([broken(LOW, HIGH)]), source([broken(HIGH, LOW)]));
}

const SPARE: &str = "10.0.1.3:3306";
/// When the connection broke, and when tracing began.
const BROKE: Nanos = 1000 * SECOND;
const STARTED: Nanos = 990 * SECOND;

/// The state of the node: VIP is a service with these servers and a timeout of 900 s.
fn balances(servers: &[&str], forward: u32) -> Event {
    let destination = |text: &&str| {
        let server = address(text);
        IpvsDestination { ip: server.ip(), port: server.port(), weight: 1, forward }
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
    at(STARTED, NODE_NS, Body::Netns(Box::new(state)))
}

fn exists(local: &str, remote: &str) -> SocketState {
    SocketState {
        flow: flow(local, remote),
        state: tcp_state::ESTABLISHED,
        inode: 7,
        uid: 0,
        timer: None,
        retransmits: 0,
        receive_queue: 0,
        send_queue: 0,
        ages: Some(SocketAges {
            data_sent_ms: 973_000,
            data_received_ms: 973_000,
            ack_received_ms: 973_000,
        }),
        bytes_received: Some(100),
        bytes_acked: Some(101),
        v6_only: false,
    }
}

fn entry(server: &str, left_s: u32) -> IpvsEntry {
    let virtual_flow = flow(CLIENT, VIP);
    IpvsEntry { virtual_flow, server: address(server), state: "ESTABLISHED".into(), left_s }
}

fn initial_state(netns: u32, sockets: Vec<SocketState>, entries: Vec<IpvsEntry>) -> Event {
    let state = InitialState {
        read: STARTED,
        sockets: Some(SocketList { sockets, truncated: false }),
        ipvs: Some(IpvsTable { entries, truncated: false }),
    };
    at(STARTED, netns, Body::InitialState(Box::new(state)))
}

/// The state that was found for the server's packet to the client.
fn lookup(sockets: Vec<SocketState>, entries: Vec<IpvsEntry>) -> Event {
    let table = IpvsTable { entries, truncated: false };
    let lookup = StateLookup {
        packet: Some(flow(SERVER, CLIENT)),
        read: BROKE + 1,
        sockets: Some(sockets),
        ipvs: vec![IpvsFound { netns: NODE_NS, read: BROKE + 1, table }],
        conntrack: Vec::new(),
    };
    at(BROKE, CLIENT_NS, Body::StateLookup(Box::new(lookup)))
}

fn judged(events: impl IntoIterator<Item = Event>) -> Incident {
    let mut correlator = Correlator::new();
    correlator.push(session(STARTED));
    for event in events {
        correlator.push(event);
    }
    let mut incidents = correlator.finish();
    assert_eq!(incidents.len(), 1, "{:?}", causes(&incidents));
    incidents.remove(0)
}

/// The client sends first, `idle_s` after it last received from the service.
fn client_first(idle_s: u64) -> [Event; 2] {
    let victim = socket(1, CLIENT, VIP, BROKE - idle_s * SECOND);
    [sent(BROKE, NODE_NS, no_socket(data(CLIENT, VIP))), received(BROKE + 1, CLIENT_NS, victim)]
}

/// The server sends first: its packet reaches the client's host untranslated.
fn server_first(idle_s: u64) -> [Event; 2] {
    let mut packet = data(SERVER, CLIENT);
    (packet.seq, packet.ack) = (9000, 5000);
    let mut victim = socket(2, SERVER, CLIENT, BROKE - idle_s * SECOND);
    (victim.snd_nxt, victim.rcv_nxt) = (9043, 5000);
    [sent(BROKE, CLIENT_NS, no_socket(packet)), received(BROKE + 1, SERVER_NS, victim)]
}

#[test]
fn an_unseen_expiry_is_inferred_when_the_server_sends_first() {
    let [packet, victim] = server_first(973);
    let found = lookup(vec![exists(CLIENT, VIP)], Vec::new());
    let incident = judged([balances(&[SERVER, SPARE], 0), packet, found, victim]);
    assert_eq!(incident.cause.id, "ipvs_idle_expired");
    assert_eq!(incident.confidence, Some(Confidence::Inferred));
    assert_eq!((incident.source, incident.destination), (address(CLIENT), address(VIP)));
    assert_eq!(incident.destination_nat, Some(address(SERVER)));
    assert_eq!(incident.victim, Victim::Destination);
    assert_eq!(incident.idle_s.map(f64::round), Some(973.0));
    assert!(incident.prove.is_some());
}

#[test]
fn without_the_server_on_this_host_the_clients_socket_gives_the_idle_time() {
    let [packet, _] = server_first(0);
    let found = lookup(vec![exists(CLIENT, VIP)], Vec::new());
    let incident = judged([balances(&[SERVER], 0), packet, found]);
    assert_eq!(incident.cause.id, "ipvs_idle_expired");
    assert_eq!(incident.idle_s.map(f64::round), Some(973.0));
    assert_eq!(incident.victim, Victim::Destination);
}

#[test]
fn an_untranslated_segment_of_the_server_is_unknown_when_any_fact_is_missing() {
    let [packet, victim] = server_first(973);
    let [young_packet, young] = server_first(100);
    let client = || vec![exists(CLIENT, VIP)];
    let other = SocketState { bytes_acked: Some(5000), ..exists(CLIENT, VIP) };
    let without = [
        ("no lookup", vec![balances(&[SERVER], 0), packet.clone(), victim.clone()]),
        ("no service", vec![packet.clone(), lookup(client(), vec![]), victim.clone()]),
        (
            "another server's service",
            vec![balances(&[SPARE], 0), packet.clone(), lookup(client(), vec![]), victim.clone()],
        ),
        (
            "an entry that exists",
            vec![
                balances(&[SERVER], 0),
                packet.clone(),
                lookup(client(), vec![entry(SERVER, 60)]),
                victim.clone(),
            ],
        ),
        (
            "another connection of that port",
            vec![balances(&[SERVER], 0), packet.clone(), lookup(vec![other], vec![]), victim],
        ),
        (
            "less idle than the limit",
            vec![balances(&[SERVER], 0), young_packet, lookup(client(), vec![]), young],
        ),
    ];
    for (what, events) in without {
        let incident = judged(events);
        assert_eq!(incident.cause.id, "unknown", "{what}");
        assert!(incident.prove.is_some(), "{what}");
        assert_eq!(incident.source, address(CLIENT), "{what}");
    }
}

#[test]
fn the_real_server_is_shown_where_only_one_is_possible() {
    let elsewhere = exists(SPARE, "10.0.0.9:1");
    let both: &[&str] = &[SERVER, SPARE];
    let cases = [
        (&both[..1], 0, vec![], Some(SERVER)),
        (&both[..1], 3, vec![], None),
        (both, 0, vec![], None),
        (both, 0, vec![initial_state(NODE_NS, vec![], vec![entry(SPARE, 1)])], Some(SPARE)),
        (
            both,
            0,
            vec![initial_state(SERVER_NS, vec![exists(SERVER, CLIENT)], vec![])],
            Some(SERVER),
        ),
        (both, 0, vec![initial_state(SERVER_NS, vec![elsewhere], vec![])], None),
    ];
    for (servers, forward, known, expected) in cases {
        let events = [vec![balances(servers, forward)], known, client_first(973).to_vec()].concat();
        let incident = judged(events);
        assert_eq!(incident.cause.id, "ipvs_idle_expired", "{servers:?}");
        assert_eq!(incident.destination_nat, expected.map(address), "{servers:?} {forward}");
    }
}

#[test]
fn a_virtual_address_without_an_entry_is_not_a_server_that_restarted() {
    let [packet, victim] = client_first(100);
    let incident = judged([balances(&[SERVER], 0), packet.clone(), victim]);
    assert_eq!(
        incident.cause.id, "unknown",
        "idle for less than the limit: removed or lost without a record"
    );
    assert!(incident.prove.is_some());
    let incident = judged([balances(&[SERVER], 0), packet]);
    assert_eq!(incident.cause.id, "unknown", "the idle time is unknown");
    assert!(incident.prove.is_some());
}

#[test]
fn a_client_that_received_the_fin_is_answered_by_a_host_whose_socket_is_gone() {
    let mut victim = socket(1, CLIENT, SERVER, BROKE - 10 * SECOND);
    victim.state = tcp_state::CLOSE_WAIT;
    for answer in [no_socket(data(CLIENT, SERVER)), at_listener(data(CLIENT, SERVER))] {
        let incident = judged([
            sent(BROKE, SERVER_NS, answer),
            received(BROKE + 1, CLIENT_NS, victim.clone()),
        ]);
        assert_eq!(incident.cause.id, "socket_gone");
        assert_eq!(incident.confidence, Some(Confidence::Inferred));
    }
}

/// The state of the node: it does NAT, and the conntrack timeout of established connections is `limit_s`.
fn tracks(limit_s: u32) -> Event {
    let tcp_timeout =
        ConntrackTcpTimeouts { established_s: Some(limit_s), ..ConntrackTcpTimeouts::default() };
    let conntrack = Some(ConntrackState { tcp_timeout, ..ConntrackState::default() });
    let translates = Some(true);
    let state = NetnsState { inum: NODE_NS, conntrack, translates, ..NetnsState::default() };
    at(STARTED, NODE_NS, Body::Netns(Box::new(state)))
}

fn tracked(original: Flow, reply: Flow) -> ConntrackEntry {
    ConntrackEntry { original, reply, state: Some(8), left_s: Some(9) }
}

/// The state that was found for a packet: these sockets, and these entries on the node.
fn traced(
    netns: u32,
    packet: Flow,
    sockets: Vec<SocketState>,
    entries: Vec<ConntrackEntry>,
) -> Event {
    let lookup = StateLookup {
        packet: Some(packet),
        read: BROKE + 1,
        sockets: Some(sockets),
        ipvs: Vec::new(),
        conntrack: vec![ConntrackFound { netns: NODE_NS, entries }],
    };
    at(BROKE, netns, Body::StateLookup(Box::new(lookup)))
}

#[test]
fn a_nat_entry_that_expired_unseen_is_inferred_where_one_namespace_does_nat() {
    let tuple = flow(SERVER, CLIENT);
    let client = || vec![exists(CLIENT, VIP)];
    let judge = |nodes: Vec<Event>, sockets, entries| {
        let [packet, victim] = server_first(973);
        let found = traced(CLIENT_NS, tuple, sockets, entries);
        judged([nodes, vec![packet, found, victim]].concat())
    };
    let incident = judge(vec![tracks(900)], client(), vec![]);
    assert_eq!(incident.cause.id, "conntrack_idle_expired");
    assert_eq!(incident.confidence, Some(Confidence::Inferred));
    assert_eq!((incident.source, incident.destination), (address(CLIENT), address(VIP)));
    assert_eq!(incident.destination_nat, Some(address(SERVER)));
    assert!(incident.prove.is_some());

    let also = |translates| {
        let state = NetnsState { inum: 99, translates, ..NetnsState::default() };
        vec![tracks(900), at(STARTED, 99, Body::Netns(Box::new(state)))]
    };
    let alive = vec![tracked(flow(CLIENT, VIP), flow(SERVER, CLIENT))];
    let another = vec![SocketState { bytes_acked: Some(7), ..exists(CLIENT, VIP) }];
    let two = vec![exists(CLIENT, VIP), exists(CLIENT, "10.96.0.11:3306")];
    for (what, nodes, sockets, entries) in [
        ("less idle than the limit", vec![tracks(86_400)], client(), vec![]),
        ("its entry exists", vec![tracks(900)], client(), alive),
        ("two do NAT", also(Some(true)), client(), vec![]),
        ("another may do NAT", also(None), client(), vec![]),
        ("no client", vec![tracks(900)], vec![], vec![]),
        ("another connection of that port", vec![tracks(900)], another, vec![]),
        ("two clients", vec![tracks(900)], two, vec![]),
    ] {
        let incident = judge(nodes, sockets, entries);
        assert_eq!(incident.cause.id, "unknown", "{what}");
        assert_eq!(incident.source, address(CLIENT), "{what}");
        assert!(incident.prove.is_some(), "{what}");
    }
}

#[test]
fn an_entry_that_our_own_lookup_reaped_was_not_deleted_by_a_process() {
    let mut own = session(1);
    if let Body::Session(session) = &mut own.body {
        session.pid = 4000;
    }
    let mut reaped = conntrack_end(99 * SECOND, 1);
    reaped.task.pid = 4000;
    let [packet, victim] = server_first(973);
    let mut correlator = Correlator::new();
    for event in [own, conntrack_ended(100 * SECOND, reaped), packet, victim] {
        correlator.push(event);
    }
    let incidents = correlator.finish();
    assert_ne!(causes(&incidents), ["conntrack_deleted"]);
}
