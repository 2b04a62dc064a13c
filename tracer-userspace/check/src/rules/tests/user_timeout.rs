//! TCP_USER_TIMEOUT against keepalive times and retransmissions.

use super::*;

/// A socket with this TCP_USER_TIMEOUT in milliseconds, and keepalive times in seconds.
fn with(limit_ms: u32, keepalive: Option<(f64, f64, u8)>) -> HostState {
    let connections = list(vec![socket("10.0.1.2:5000", "10.0.2.2:3306", 77)]);
    let mut state = host(vec![Netns { connections, ..netns(1) }]);
    let (time_s, intvl_s, probes) = keepalive.unwrap_or((7200.0, 75.0, 9));
    let keepalive =
        Keepalive { enabled: keepalive.is_some(), time_s, intvl_s, probes, time_is_own: false };
    let options = Some(SocketOptions { keepalive, user_timeout_ms: limit_ms });
    state.held.insert(77, HeldSocket { options, ..held(None) });
    state
}

fn found(state: &HostState) -> CheckFinding {
    let found = of_rule(state, "user_timeout");
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().expect("one")
}

#[test]
fn a_socket_without_the_option_has_no_finding() {
    assert_eq!(ranks(&with(0, Some((300.0, 30.0, 3))), "user_timeout"), []);
}

#[test]
fn a_timeout_up_to_time_plus_interval_allows_one_probe_and_a_longer_one_allows_more() {
    let rank = |limit_ms| found(&with(limit_ms, Some((300.0, 30.0, 3)))).rank;
    assert_eq!(rank(20_000), Rank::Warn);
    // The first probe is sent at 300 s; at 330 s the probe is unanswered and the timeout has expired.
    assert_eq!(rank(330_000), Rank::Warn);
    assert_eq!(rank(330_001), Rank::Info);
    let finding = found(&with(390_000, Some((300.0, 30.0, 3))));
    assert!(
        finding.formula.ends_with("⌈(390000 − 300000) / 30000⌉ = 3, not 3"),
        "{}",
        finding.formula
    );
}

#[test]
fn one_probe_is_not_a_warning_where_the_number_of_probes_is_one() {
    assert_eq!(found(&with(20_000, Some((10.0, 10.0, 1)))).rank, Rank::Info);
}

#[test]
fn the_fix_is_a_longer_timeout_or_earlier_probes_where_that_timeout_is_too_long() {
    let commands =
        |limit_ms, keepalive| found(&with(limit_ms, Some(keepalive))).fixes[0].commands();
    let longer = "setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 390000)";
    assert_eq!(commands(20_000, (300.0, 30.0, 3)), [longer]);
    let sooner = commands(30_000, (7200.0, 75.0, 9));
    let set = ["TCP_KEEPIDLE, 15)", "TCP_KEEPINTVL, 5)", "TCP_KEEPCNT, 3)"];
    assert!(sooner.iter().zip(set).all(|(it, set)| it.ends_with(set)), "{sooner:?}");
    // 15 + 5 × 3 is the timeout again: after the fix there is no warning.
    assert_eq!(found(&with(30_000, Some((15.0, 5.0, 3)))).rank, Rank::Info);
}

#[test]
fn three_retransmissions_at_the_smallest_interval_take_1400_ms() {
    assert_eq!(found(&with(1399, None)).rank, Rank::Warn);
    let finding = found(&with(1400, None));
    assert_eq!((finding.rank, finding.cause), (Rank::Info, Some("user_timeout")));
    assert!(
        finding
            .reason
            .starts_with("1 connection on the host times out when nothing was acknowledged")
    );
}

#[test]
fn a_user_timeout_overrides_the_slowest_keepalive() {
    let slow = with(0, Some((7200.0, 75.0, 9)));
    assert_eq!(ranks(&slow, "dead_peer"), [(Rank::Info, 1)]);
    assert_eq!(ranks(&with(30_000, Some((7200.0, 75.0, 9))), "dead_peer"), []);
}
