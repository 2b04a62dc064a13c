//! Causes of the contract that no healing is played for, and why.

/// Cause, and the reason in a clause.
pub const UNHEALED: &[(&str, &str)] = &[
    ("middlebox_idle_timeout", BELOW_LIMIT),
    ("syncookie_failed", "the first fix is a longer queue: that is listen_overflow's healing"),
    ("keepalive_exhausted", SOONER),
    ("retransmission_timeout", SOONER),
    ("user_timeout", SOONER),
    ("conntrack_deleted", DO_NOT),
    ("masquerade_flushed", DO_NOT),
    ("socket_destroyed", DO_NOT),
    ("firewall_reject", DO_NOT),
    ("process_killed", DO_NOT),
    (
        "wrong_backend",
        "sloppy_tcp=0 only changes who resets; the entry that was lost before is ipvs_idle_expired's",
    ),
    ("socket_gone", "the client has to connect again"),
    ("data_after_close", "the same advice as idle_close_race, whose healing is played"),
    ("peer_aborted", ELSEWHERE),
    ("peer_state_lost", ELSEWHERE),
    ("connection_refused", BENIGN),
    ("handshake_rejected", BENIGN),
    ("unknown", "there is nothing to advise"),
];

const BELOW_LIMIT: &str =
    "a device elsewhere; keepalives below its limit are ipvs_idle_expired's healing";
const SOONER: &str = "the peer or the path is gone, and a setting only finds that out sooner";
const DO_NOT: &str = "somebody did it on purpose; the advice is not to";
const ELSEWHERE: &str = "it is done on another host";
const BENIGN: &str = "nothing is broken";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{expect, heal};

    #[test]
    fn every_cause_of_the_contract_is_healed_or_says_why_not() {
        let healed: Vec<_> = heal::all().iter().map(|healing| healing.cause()).collect();
        for cause in expect::causes() {
            let reasons = UNHEALED.iter().filter(|(unhealed, _)| *unhealed == cause).count();
            let expected = usize::from(!healed.contains(&cause));
            assert_eq!(reasons, expected, "{cause}");
        }
    }
}
