//! Causes of the contract without a fix test, and why.

/// Cause, and the reason in a clause.
pub const NO_FIX_TEST: &[(&str, &str)] = &[
    ("middlebox_idle_timeout", BELOW_LIMIT),
    (
        "syncookie_failed",
        "the first fix is a longer queue, which the fix test of listen_overflow covers",
    ),
    ("keepalive_exhausted", SOONER),
    ("retransmission_timeout", SOONER),
    ("user_timeout", SOONER),
    ("conntrack_deleted", DO_NOT),
    ("masquerade_flushed", DO_NOT),
    ("nat_removed", DO_NOT),
    ("socket_destroyed", DO_NOT),
    ("firewall_reject", DO_NOT),
    ("process_killed", DO_NOT),
    (
        "wrong_backend",
        "sloppy_tcp=0 only changes which host resets; ipvs_idle_expired covers the lost entry",
    ),
    ("socket_gone", "the client must connect again"),
    ("data_after_close", "the same advice as for idle_close_race, which has a fix test"),
    ("injected_reset", ELSEWHERE),
    ("peer_aborted", ELSEWHERE),
    ("peer_state_lost", ELSEWHERE),
    ("connection_refused", BENIGN),
    ("handshake_rejected", BENIGN),
    ("unknown", "there is no advice"),
];

const BELOW_LIMIT: &str = "a device elsewhere; ipvs_idle_expired covers keepalives below a limit";
const SOONER: &str = "the peer or the path is gone, and a setting only detects that sooner";
const DO_NOT: &str = "an operator did it on purpose; the advice is not to do it";
const ELSEWHERE: &str = "the fix is on another host";
const BENIGN: &str = "nothing is broken";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{expect, fix_e2e};

    #[test]
    fn every_cause_of_the_contract_has_a_fix_test_or_a_reason_for_none() {
        let tested: Vec<_> = fix_e2e::all().iter().map(|fix_test| fix_test.cause()).collect();
        for cause in expect::causes() {
            let reasons = NO_FIX_TEST.iter().filter(|(untested, _)| *untested == cause).count();
            let expected = usize::from(!tested.contains(&cause));
            assert_eq!(reasons, expected, "{cause}");
        }
    }
}
