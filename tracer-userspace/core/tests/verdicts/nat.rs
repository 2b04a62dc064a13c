//! Translated connections: what conntrack did to them, and similar streams with other causes.

use rsttrace_core::{
    correlator::Correlator,
    event::{ConntrackEnd, Event, Packet},
    incident::{Action, Victim},
    testing::{
        CLIENT, CLIENT_NS, SECOND, SERVER, SERVER_NS, VIP, address, at_listener, causes,
        clash_drop, conntrack_end, conntrack_ended, data, failed, judged_invalid, no_socket,
        received, replay, sent, session, socket, stack,
    },
    verdict::Confidence,
};
use rsttrace_model::tcp_flag;

/// A segment of the server far outside the window.
fn untranslated() -> Packet {
    Packet { seq: 9000 + (1 << 30), ack: 5000, ..data(SERVER, CLIENT) }
}

/// The client's host resets that segment, and the socket that sent the segment fails.
fn reset_of_untranslated() -> Vec<Event> {
    let mut server = socket(2, SERVER, CLIENT, 99 * SECOND);
    (server.snd_una, server.snd_nxt, server.rcv_nxt) = (9000, 9000, 5000);
    vec![
        sent(100 * SECOND + 1, CLIENT_NS, no_socket(untranslated())),
        received(100 * SECOND + 2, SERVER_NS, server.clone()),
        failed(100 * SECOND + 3, SERVER_NS, server, 104, &["tcp_reset"]),
    ]
}

#[test]
fn a_packet_judged_invalid_explains_the_reset_that_answers_it_and_shows_both_tuples() {
    let mut events = vec![judged_invalid(100 * SECOND, untranslated())];
    events.extend(reset_of_untranslated());
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["conntrack_invalid"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Observed));
    assert_eq!(incidents[0].destination, address(VIP));
    assert_eq!(incidents[0].destination_nat, Some(address(SERVER)));
    assert_eq!(incidents[0].victim, Victim::Destination);
}

#[test]
fn without_the_host_that_answered_an_invalid_packet_is_correlated() {
    let mut events = vec![judged_invalid(100 * SECOND, untranslated())];
    events.extend(reset_of_untranslated().into_iter().skip(1));
    let incidents = replay(events);
    assert_eq!(causes(&incidents), ["conntrack_invalid"]);
    assert_eq!(incidents[0].confidence, Some(Confidence::Correlated));
    assert!(incidents[0].prove.is_some());
}

#[test]
fn an_old_invalid_packet_or_one_of_the_other_direction_does_not_explain_a_reset() {
    for early in [
        judged_invalid(40 * SECOND, untranslated()),
        judged_invalid(100 * SECOND, data(CLIENT, VIP)),
    ] {
        let mut events = vec![early];
        events.extend(reset_of_untranslated());
        assert_ne!(causes(&replay(events)), ["conntrack_invalid"]);
    }
}

#[test]
fn the_end_of_one_tuple_in_two_zones_is_only_correlated() {
    let in_zones = |zones: [u32; 2]| {
        let ended = |at: u64, zone| {
            let end = ConntrackEnd { zone, ..conntrack_end(500 * SECOND, 4711) };
            conntrack_ended(at * SECOND, end)
        };
        let incidents = replay([
            ended(50, zones[0]),
            ended(51, zones[1]),
            sent(100 * SECOND, SERVER_NS, at_listener(data(CLIENT, "10.0.1.3:3306"))),
            received(100 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 40 * SECOND)),
        ]);
        assert_eq!(causes(&incidents), ["conntrack_deleted"]);
        incidents[0].confidence
    };
    assert_eq!(in_zones([7, 7]), Some(Confidence::Observed));
    assert_eq!(in_zones([7, 8]), Some(Confidence::Correlated));
}

fn syn() -> Packet {
    Packet { flags: tcp_flag::SYN, payload: 0, ack: 0, ..data(CLIENT, VIP) }
}

#[test]
fn a_syn_that_clashes_twice_is_a_drop_and_its_timeout_follows() {
    let mut socket = socket(1, CLIENT, VIP, 0);
    (socket.rcv_nxt, socket.snd_una, socket.last_received) = (0, 5000, None);
    let incidents = replay([
        clash_drop(100 * SECOND, syn()),
        clash_drop(101 * SECOND, syn()),
        clash_drop(103 * SECOND, syn()),
        failed(107 * SECOND, CLIENT_NS, socket, 110, &["tcp_write_timer"]),
    ]);
    assert_eq!(causes(&incidents), ["nat_port_exhausted", "+nat_port_exhausted"]);
    assert_eq!(incidents[0].action, Action::Drop);
    assert_eq!(incidents[0].confidence, Some(Confidence::Correlated));
}

#[test]
fn a_syn_that_clashed_again_before_its_verdict_is_a_drop() {
    let mut correlator = Correlator::new();
    correlator.push(session(0));
    for second in [100, 101, 103] {
        correlator.push(clash_drop(second * SECOND, syn()));
    }
    let incidents = correlator.finish();
    assert_eq!(causes(&incidents), ["nat_port_exhausted"]);
    assert_eq!(incidents[0].action, Action::Drop);
}

#[test]
fn a_single_clash_is_not_an_incident() {
    assert!(replay([clash_drop(100 * SECOND, syn())]).is_empty());
    let mut later = syn();
    later.seq = 77;
    let reused = [clash_drop(100 * SECOND, syn()), clash_drop(160 * SECOND, later)];
    assert!(replay(reused).is_empty(), "another connection of that tuple clashed once");
}

/// The entry ended at 50 s, below these functions. A listener that never had the connection answers the
/// client's next packet.
fn lost(functions: &[&str], deadline: u64) -> Vec<String> {
    let mut end = conntrack_end(deadline, 0);
    end.stack = stack(functions);
    causes(&replay([
        conntrack_ended(50 * SECOND, end),
        sent(100 * SECOND, SERVER_NS, at_listener(data(CLIENT, "10.0.1.3:3306"))),
        received(100 * SECOND + 1, CLIENT_NS, socket(1, CLIENT, VIP, 40 * SECOND)),
    ]))
}

#[test]
fn the_stack_distinguishes_an_eviction_a_flush_and_an_expiry() {
    let due = 49 * SECOND;
    let not_due = 500 * SECOND;
    assert_eq!(
        lost(&["nf_ct_delete", "early_drop", "init_conntrack"], not_due),
        ["conntrack_early_drop"]
    );
    assert_eq!(lost(&["nf_ct_delete", "gc_worker"], not_due), ["conntrack_early_drop"]);
    assert_eq!(lost(&["nf_ct_delete", "gc_worker"], due), ["conntrack_idle_expired"]);
    let flush = ["nf_ct_delete", "nf_ct_iterate_cleanup", "iterate_cleanup_work"];
    assert_eq!(lost(&flush, not_due), ["masquerade_flushed"]);
    // Another deletion, such as the end of the namespace, is none of these.
    let other = lost(&["nf_ct_delete", "nf_ct_iterate_cleanup", "cleanup_net"], not_due);
    assert_eq!(other, ["unknown"]);
}
