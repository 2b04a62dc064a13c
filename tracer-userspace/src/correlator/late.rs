//! Streams about connections that are older than the tracer.

use super::*;
use crate::{host::NetnsState, testing::*};

/// Two ports of the ephemeral range.
const LOW: &str = "10.0.0.2:40000";
const HIGH: &str = "10.0.1.2:50000";

/// A namespace in which sockets listen at these addresses.
fn listening(netns: u32, addresses: &[&str]) -> Event {
    let listeners = addresses.iter().map(|text| address(text)).collect();
    let state = NetnsState { inum: netns, listeners: Some(listeners), ..NetnsState::default() };
    at(SECOND, netns, Body::Netns(Box::new(state)))
}

/// A bare reset meets `local`, whose namespace is 11.
fn broken(local: &str, remote: &str) -> Event {
    received(10 * SECOND, CLIENT_NS, socket(1, local, remote, 9 * SECOND))
}

/// Who is taken for the initiator.
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
fn a_listener_that_died_with_its_connections_is_still_the_destination() {
    let events =
        [listening(CLIENT_NS, &["0.0.0.0:40000"]), listening(CLIENT_NS, &[]), broken(LOW, HIGH)];
    assert_eq!(source(events), HIGH);
}

#[test]
fn a_closed_listener_with_a_known_port_is_no_source() {
    let events = [listening(CLIENT_NS, &[]), broken("10.0.0.2:3306", HIGH)];
    assert_eq!(source(events), HIGH);
}

#[test]
fn both_ends_agree_on_who_listens() {
    // The client's end is told first, and its own namespace knows nothing of the listener.
    let mut stray = data(HIGH, LOW);
    (stray.seq, stray.ack) = (5000, 9000);
    let hurt = received(10 * SECOND, SERVER_NS, socket(1, HIGH, LOW, 9 * SECOND));
    let answered = sent(10 * SECOND + 1, CLIENT_NS, at_listener(stray));
    let mut unbound = no_socket(stray);
    unbound.reason = Some("NO_SOCKET".into());
    let by_stack = sent(10 * SECOND + 1, CLIENT_NS, unbound);
    for answer in [answered, by_stack] {
        let events = [listening(CLIENT_NS, &["0.0.0.0:40000"]), hurt.clone(), answer];
        let incidents = replay(events);
        assert_eq!(incidents[0].destination, address(LOW));
        assert_eq!(incidents.len(), 1);
    }
}

#[test]
fn without_any_listener_known_the_rule_is_the_same_for_both_ends() {
    assert_eq!(source([broken(LOW, HIGH)]), source([broken(HIGH, LOW)]));
}
