//! Resets without a record of their sending on this host.

use rsttrace_core::{
    event::{Body, Event, SignalCoverage, SkippedRuns, Socket},
    testing::{CLIENT, CLIENT_NS, SECOND, SERVER, at, causes, received, replay, session, socket},
    verdict::Confidence,
};
use rsttrace_model::tcp_flag;

/// RST|ACK with this TTL is accepted by `socket`.
fn aborted(socket: Socket, ttl: u8) -> Event {
    let mut event = received(1000 * SECOND, CLIENT_NS, socket);
    if let Body::ResetReceived(it) = &mut event.body
        && let Some(packet) = &mut it.packet
    {
        (packet.ttl, packet.flags) = (ttl, packet.flags | tcp_flag::ACK);
    }
    event
}

/// A connection without payload in either direction.
fn unused(local: &str, remote: &str) -> Socket {
    let mut socket = socket(1, local, remote, 990 * SECOND);
    (socket.bytes_received, socket.bytes_sent) = (0, 0);
    socket
}

#[test]
fn an_abort_from_nearby_is_only_inferred_because_its_record_may_be_missing() {
    for (ttl, confidence) in [(64, Confidence::Inferred), (52, Confidence::Correlated)] {
        let client = socket(1, CLIENT, SERVER, 990 * SECOND);
        let incidents = replay([session(5), aborted(client, ttl)]);
        assert_eq!(causes(&incidents), ["peer_aborted"]);
        assert_eq!(incidents[0].confidence, Some(confidence), "TTL {ttl}");
    }
}

#[test]
fn an_unused_connection_that_its_initiator_aborts_is_a_health_check() {
    let incidents = replay([session(5), aborted(unused(SERVER, CLIENT), 64)]);
    assert_eq!(causes(&incidents), ["handshake_rejected"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Correlated));
}

#[test]
fn an_unused_connection_that_its_responder_aborts_is_not_a_health_check() {
    let incidents = replay([session(5), aborted(unused(CLIENT, SERVER), 64)]);
    assert_eq!(causes(&incidents), ["peer_aborted"]);
}

/// A session in which the resets of firewall rules are traced (`way`) or not.
fn firewall(ts: u64, way: Option<&str>) -> Event {
    let mut event = session(ts);
    if let Body::Session(session) = &mut event.body {
        session.coverage.push(SignalCoverage {
            id: "firewall_reset".into(),
            way: way.map(str::to_owned),
            blind: None,
            attaching: false,
        });
    }
    event
}

#[test]
fn a_reset_before_the_firewall_was_hooked_is_unknown_even_if_its_verdict_comes_later() {
    let opened = 1000 * SECOND;
    for (hooked, cause) in [(opened - 1, "peer_state_lost"), (opened + SECOND / 10, "unknown")] {
        let incidents = replay([
            firewall(5, None),
            firewall(hooked, Some("nf_send_reset__kprobe")),
            received(opened, CLIENT_NS, socket(1, CLIENT, SERVER, 990 * SECOND)),
        ]);
        assert_eq!(causes(&incidents), [cause], "hooked at {hooked}");
    }
}

#[test]
fn a_reset_without_a_recorded_sender_is_unknown_when_records_were_lost() {
    let opened = 1000 * SECOND;
    for (lost, body, cause) in [
        (opened + SECOND / 10, Body::Lost(3), "unknown"),
        (opened + SECOND / 10, Body::SkippedRuns(SkippedRuns::Total(1)), "unknown"),
        (900 * SECOND, Body::Lost(3), "peer_state_lost"),
    ] {
        let mut events = [
            session(5),
            at(lost, 0, body),
            received(opened, CLIENT_NS, socket(1, CLIENT, SERVER, 990 * SECOND)),
        ];
        events.sort_by_key(|event| event.ts);
        assert_eq!(causes(&replay(events)), [cause], "lost at {lost}");
    }
}
