//! Idle limits of devices elsewhere, measured by the connections that break and that survive.

use rsttrace_core::{
    event::{Body, Event},
    testing::{
        CLIENT_NS, SECOND, address, at, causes, ipvs_end, ipvs_ended, received, replay, socket,
    },
    verdict::Confidence,
};

const SERVICE: &str = "10.9.9.9:443";

/// A connection idle for `idle` seconds is reset from elsewhere at `second`.
fn breaks(second: u64, idle: u64) -> Event {
    let client = format!("10.0.0.2:{}", 40_000 + second);
    let mut socket = socket(second, &client, SERVICE, (second - idle) * SECOND);
    let isn = u32::try_from(second).unwrap_or(0) << 16;
    (socket.snd_una, socket.snd_nxt, socket.rcv_nxt) = (isn, isn, !isn);
    received(second * SECOND, CLIENT_NS, socket)
}

fn survives(second: u64, idle_s: f64) -> Event {
    at(second * SECOND, CLIENT_NS, Body::Survived { service: address(SERVICE), idle_s })
}

#[test]
fn the_second_independent_break_shows_the_limit_and_a_keepalive_below_the_survived_idle_time() {
    let incidents = replay([breaks(500, 351), survives(900, 348.0), breaks(1000, 352)]);
    assert_eq!(causes(&incidents), ["peer_state_lost", "middlebox_idle_timeout"]);
    let measured = &incidents[1];
    assert_eq!(measured.confidence, Some(Confidence::Inferred));
    assert!(measured.why.contains("AWS NLB"), "{}", measured.why);
    assert!(measured.evidence[0].summary.contains("348 s"), "{}", measured.evidence[0].summary);
    assert_eq!(measured.fixes[0].wanted.as_deref(), Some("116/11/3"));
}

#[test]
fn breaks_at_one_time_or_below_a_survived_idle_time_do_not_measure_a_limit() {
    let restart = replay([survives(400, 100.0), breaks(500, 351), breaks(501, 352)]);
    assert_eq!(causes(&restart), ["peer_state_lost", "peer_state_lost"]);
    let refuted = replay([breaks(500, 351), survives(900, 400.0), breaks(1000, 352)]);
    assert_eq!(causes(&refuted), ["peer_state_lost", "peer_state_lost"]);
    assert!(refuted[1].ruled_out.iter().any(|ruled| ruled.cause == "middlebox_idle_timeout"));
}

#[test]
fn a_break_that_this_host_explains_is_not_a_sample() {
    let explained = |second: u64| {
        let mut end = ipvs_end(900.0);
        end.virtual_flow.src.set_port(40_000 + u16::try_from(second).unwrap_or(0));
        end.virtual_flow.dst = address(SERVICE);
        ipvs_ended((second - 1) * SECOND, end)
    };
    let incidents =
        replay([explained(2000), breaks(2000, 950), survives(2100, 500.0), breaks(4000, 950)]);
    assert_eq!(causes(&incidents), ["ipvs_idle_expired", "peer_state_lost"]);
}
