//! The causes: one file each, a value and a predicate.
//!
//! [`ALL`] is one ordered list and the order is the precedence: the first cause whose `judge` returns a
//! verdict wins. There are no scores. A cause later in the list may therefore assume that the earlier
//! ones returned `None`.

pub mod cause;
mod close_unread_data;
mod connection_refused;
mod conntrack_deleted;
mod conntrack_early_drop;
pub mod conntrack_idle_expired;
mod conntrack_invalid;
mod conntrack_table_full;
mod data_after_close;
pub mod doc;
mod firewall_reject;
pub mod fix_context;
mod foreign_reset;
mod handshake_rejected;
mod idle_close_race;
mod injected_reset;
mod ipvs_entry;
mod ipvs_entry_dropped;
mod ipvs_halfclose_expired;
mod ipvs_idle_expired;
mod ipvs_server_removed;
mod keepalive_exhausted;
mod linger_zero;
mod listen_overflow;
mod listener_closed;
mod masquerade_flushed;
pub mod middlebox_idle_timeout;
mod nat_port_exhausted;
mod nat_removed;
mod no_backend;
mod peer_aborted;
mod peer_state_lost;
mod process_killed;
mod reject_rule;
pub mod remedy;
mod retransmission_timeout;
mod socket_destroyed;
mod socket_gone;
mod syncookie_failed;
mod tcp_resource_limit;
mod unanswered;
mod unknown;
mod user_timeout;
mod wrong_backend;

pub use cause::Cause;
pub use doc::{Detection, Doc, RequiredSignal};
pub use fix_context::{FailedConnection, FixContext};

/// Every cause, in order of precedence.
pub const ALL: &[Cause] = &[
    // A packet of this tuple was dropped by a full table, or because NAT had no free tuple for it.
    conntrack_table_full::CAUSE,
    nat_port_exhausted::CAUSE,
    // Its IPVS or conntrack entry was lost.
    ipvs_idle_expired::CAUSE,
    ipvs_halfclose_expired::CAUSE,
    ipvs_server_removed::CAUSE,
    ipvs_entry_dropped::CAUSE,
    conntrack_deleted::CAUSE,
    conntrack_early_drop::CAUSE,
    masquerade_flushed::CAUSE,
    conntrack_idle_expired::CAUSE,
    // Its entry is not applied any more.
    nat_removed::CAUSE,
    // IPVS had no server for its SYN: the connect is refused, or its retries run out.
    no_backend::CAUSE,
    // The entry exists but did not apply.
    conntrack_invalid::CAUSE,
    // A rule answered: that may look like a closed port, or like exhausted retries.
    firewall_reject::CAUSE,
    // A full queue dropped its handshake, so its retries run out.
    listen_overflow::CAUSE,
    // Timers and retries that ran out.
    keepalive_exhausted::CAUSE,
    user_timeout::CAUSE,
    retransmission_timeout::CAUSE,
    // What this host's policy, limits and applications did.
    connection_refused::CAUSE,
    handshake_rejected::CAUSE,
    socket_destroyed::CAUSE,
    tcp_resource_limit::CAUSE,
    listener_closed::CAUSE,
    process_killed::CAUSE,
    close_unread_data::CAUSE,
    linger_zero::CAUSE,
    idle_close_race::CAUSE,
    data_after_close::CAUSE,
    // A packet reached a TCP stack that had no connection for it.
    socket_gone::CAUSE,
    syncookie_failed::CAUSE,
    wrong_backend::CAUSE,
    // Other hosts: first by measured idle times, then by who sent the reset, then by the reset alone.
    middlebox_idle_timeout::CAUSE,
    injected_reset::CAUSE,
    peer_aborted::CAUSE,
    peer_state_lost::CAUSE,
    unknown::CAUSE,
];

/// The cause with this id.
pub fn by_id(id: &str) -> Option<&'static Cause> {
    ALL.iter().find(|cause| cause.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Confidence, Family};

    #[test]
    fn every_cause_but_unknown_documents_detections_and_fixes() {
        for cause in ALL {
            let doc = &cause.doc;
            let needs_no_fix = matches!(cause.family, Family::Benign | Family::Unknown);
            assert!(!doc.about.is_empty(), "{cause:?}");
            assert_eq!(doc.detections.is_empty(), cause.id == "unknown", "{cause:?}");
            assert_eq!(doc.fixes.is_empty(), needs_no_fix, "{cause:?}");
            assert_eq!(doc.not_fixes.is_empty(), needs_no_fix, "{cause:?}");
            assert!(doc.detections.is_sorted_by(|a, b| a.confidence >= b.confidence), "{cause:?}");
        }
    }

    #[test]
    fn the_id_of_a_fix_names_one_action_wherever_it_appears() {
        let mut actions = std::collections::BTreeMap::new();
        for remedy in ALL.iter().flat_map(|cause| cause.doc.fixes) {
            let action = (remedy.summary, remedy.how, remedy.owner);
            let known = actions.entry(remedy.id).or_insert(action);
            assert_eq!(*known, action, "{}", remedy.id);
        }
    }

    #[test]
    fn causes_that_documentation_refers_to_exist() {
        let is_id = |word: &str| {
            word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        };
        for cause in ALL {
            for (other, _) in cause.doc.mistaken_for.iter().filter(|(other, _)| is_id(other)) {
                assert!(by_id(other).is_some(), "{cause:?} refers to {other}");
                assert_ne!(*other, cause.id);
            }
        }
    }

    #[test]
    fn no_sign_promises_more_than_the_ceiling_of_its_cause() {
        for cause in ALL {
            let best = cause.doc.best_confidence(|_| true);
            assert!(best.is_none_or(|best| best <= cause.ceiling), "{cause:?}: {best:?}");
        }
    }

    #[test]
    fn the_ceilings_are_those_of_the_contract() {
        let below: Vec<_> = ALL
            .iter()
            .filter(|cause| cause.ceiling < Confidence::Observed)
            .map(|cause| (cause.id, cause.ceiling))
            .collect();
        let contract = [
            ("nat_port_exhausted", Confidence::Correlated),
            ("nat_removed", Confidence::Correlated),
            ("syncookie_failed", Confidence::Correlated),
            ("wrong_backend", Confidence::Inferred),
            ("middlebox_idle_timeout", Confidence::Inferred),
            ("peer_state_lost", Confidence::Inferred),
        ];
        assert_eq!(below, contract);
    }

    #[test]
    fn ids_are_unique_and_unknown_comes_last() {
        let mut ids: Vec<&str> = ALL.iter().map(|cause| cause.id).collect();
        assert_eq!(ids.last(), Some(&"unknown"));
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }
}
