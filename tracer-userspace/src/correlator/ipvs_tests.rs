//! IPVS: services without a server, servers taken out, entries lost, and what looks like it.

use super::*;
use crate::{
    event::{Packet, Socket, tcp_flag, tcp_state},
    host::{IpvsDestination, IpvsService, IpvsState, NetnsState},
    incident::Confidence,
    testing::*,
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
fn a_service_without_a_server_is_no_closed_port() {
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
    assert!(incidents[0].why.ends_with("no real server but 2 of weight 0"), "{}", incidents[0].why);
}

#[test]
fn a_remote_clients_refused_connect_is_told_once_whatever_its_retries() {
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
fn a_connect_whose_refusals_were_withheld_follows_its_dropped_syn() {
    let incidents = replay([
        no_server_drop(10 * SECOND, syn()),
        no_server_drop(11 * SECOND, syn()),
        failed(13 * SECOND, CLIENT_NS, connecting(), 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&incidents), ["no_backend", "+no_backend"]);
}

#[test]
fn a_server_that_refuses_is_no_missing_server() {
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
fn an_old_refusal_of_the_same_ports_explains_no_later_timeout() {
    let mut later = connecting();
    (later.snd_una, later.snd_nxt) = (90_000_000, 90_000_001);
    let incidents = replay([
        no_server_drop(10 * SECOND, syn()),
        failed(5000 * SECOND, CLIENT_NS, later, 110, &["tcp_retransmit_timer"]),
    ]);
    assert_eq!(causes(&incidents), ["no_backend", "retransmission_timeout"]);
}
