//! The causes: one file each, a value and a predicate.
//!
//! [`ALL`] is one ordered list and the order is the precedence: the first cause whose `judge` says
//! yes is the verdict. There are no scores. A cause later in the list may therefore assume that the
//! earlier ones said no.

use crate::{
    evidence::Evidence,
    fix::Fix,
    incident::{Confidence, Finding},
};

mod close_unread_data;
mod connection_refused;
mod conntrack_deleted;
mod conntrack_early_drop;
pub(crate) mod conntrack_idle_expired;
mod conntrack_invalid;
mod conntrack_table_full;
mod data_after_close;
mod doc;
mod firewall_reject;
mod handshake_rejected;
mod idle_close_race;
mod ipvs_entry_dropped;
mod ipvs_halfclose_expired;
mod ipvs_idle_expired;
mod ipvs_server_removed;
mod keepalive_exhausted;
mod linger_zero;
mod listen_overflow;
mod listener_closed;
mod masquerade_flushed;
mod middlebox_idle_timeout;
mod nat_port_exhausted;
mod no_backend;
mod peer_aborted;
mod peer_state_lost;
mod process_killed;
pub(crate) mod remedy;
mod retransmission_timeout;
mod scene;
mod socket_destroyed;
mod socket_gone;
mod syncookie_failed;
mod tcp_resource_limit;
mod unanswered;
mod unknown;
mod user_timeout;
mod wrong_backend;

/// What dashboards group by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    TimeoutMismatch,
    Capacity,
    Keepalive,
    StateLost,
    Policy,
    Application,
    Remote,
    Benign,
    Unknown,
}

impl Family {
    /// The contract's word for it.
    pub fn id(self) -> &'static str {
        match self {
            Self::TimeoutMismatch => "timeout_mismatch",
            Self::Capacity => "capacity",
            Self::Keepalive => "keepalive",
            Self::StateLost => "state_lost",
            Self::Policy => "policy",
            Self::Application => "application",
            Self::Remote => "remote",
            Self::Benign => "benign",
            Self::Unknown => "unknown",
        }
    }

    /// What its causes have in common.
    pub fn title(self) -> &'static str {
        match self {
            Self::TimeoutMismatch => "a timer on the way is shorter than the connection's silence",
            Self::Capacity => "a table or a queue was full",
            Self::Keepalive => "nobody answered until a timer gave up",
            Self::StateLost => "an entry or a socket was gone, and not by idleness",
            Self::Policy => "somebody wanted it to end",
            Self::Application => "what an application on this host did",
            Self::Remote => "it was made elsewhere",
            Self::Benign => "no connection broke; told with --all only",
            Self::Unknown => "no verdict",
        }
    }

    /// Every family, for help and for checking `--family`.
    pub const ALL: [Self; 9] = [
        Self::TimeoutMismatch,
        Self::Capacity,
        Self::Keepalive,
        Self::StateLost,
        Self::Policy,
        Self::Application,
        Self::Remote,
        Self::Benign,
        Self::Unknown,
    ];
}

/// A verdict of one cause on one case.
#[derive(Debug)]
pub struct Verdict {
    /// `None` for `unknown` only.
    pub confidence: Option<Confidence>,
    /// Why, in a clause: "its IPVS entry had expired (limit 900 s)".
    pub why: String,
    /// What convinced it, most convincing first.
    pub findings: Vec<Finding>,
    /// The cheapest test that would settle it. Required below `observed` where it can be had.
    pub prove: Option<String>,
}

impl Verdict {
    fn new(confidence: Confidence, why: impl Into<String>) -> Self {
        Self { confidence: Some(confidence), why: why.into(), findings: Vec::new(), prove: None }
    }

    fn finding(mut self, finding: Finding) -> Self {
        self.findings.push(finding);
        self
    }

    fn prove(mut self, test: impl Into<String>) -> Self {
        self.prove = Some(test.into());
        self
    }
}

pub use doc::{Doc, Need, Sign};
pub use scene::{Broken, Scene};

/// Something people try that does not help here: what, and why not.
pub type NotFix = (String, String);

/// A root cause.
pub struct Cause {
    /// Stable id of the contract.
    pub id: &'static str,
    pub family: Family,
    /// One line.
    pub title: &'static str,
    pub doc: Doc,
    /// Decides whether the evidence shows this cause.
    pub judge: fn(&Evidence<'_>) -> Option<Verdict>,
    /// Why it is *not* this cause, when that can be said honestly. Called only after `judge` of
    /// another cause won.
    pub rule_out: fn(&Evidence<'_>) -> Option<String>,
    /// What to change, best first.
    pub fixes: fn(&Evidence<'_>) -> Vec<Fix>,
    pub not_fixes: fn(&Evidence<'_>) -> Vec<NotFix>,
    /// What to change on a host as it is, best first; `None` when there is nothing to compute and the
    /// documented remedies are all that can be said.
    pub on_host: Option<fn(&Scene<'_>) -> Vec<Fix>>,
}

impl Cause {
    /// The fixes for a host as it is, best first.
    pub fn fixes_on(&self, scene: &Scene<'_>) -> Vec<Fix> {
        let mut fixes = self.on_host.map(|on_host| on_host(scene)).unwrap_or_default();
        // What could not be computed here is told in general terms.
        for remedy in self.doc.fixes {
            if !fixes.iter().any(|fix| fix.id == remedy.id) {
                fixes.push(remedy.fix());
            }
        }
        fixes
    }

    /// What is told may be a dropped packet, at once: its sender may hear of it minutes later, and elsewhere.
    pub fn is_a_drop(&self) -> bool {
        matches!(
            self.id,
            "conntrack_table_full"
                | "nat_port_exhausted"
                | "no_backend"
                | "ipvs_server_removed"
                | "ipvs_entry_dropped"
        )
    }
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

/// Every cause, in order of precedence.
pub const ALL: &[Cause] = &[
    // A packet of this tuple dropped by a full table, or because NAT had no tuple left for it.
    conntrack_table_full::CAUSE,
    nat_port_exhausted::CAUSE,
    // Its IPVS or conntrack entry lost.
    ipvs_idle_expired::CAUSE,
    ipvs_halfclose_expired::CAUSE,
    ipvs_server_removed::CAUSE,
    ipvs_entry_dropped::CAUSE,
    conntrack_deleted::CAUSE,
    conntrack_early_drop::CAUSE,
    masquerade_flushed::CAUSE,
    conntrack_idle_expired::CAUSE,
    // IPVS had no server for its SYN: it looks refused, or its retries run out.
    no_backend::CAUSE,
    // The entry is there, and did not apply.
    conntrack_invalid::CAUSE,
    // A rule answered: what it answered may look like a closed port, or run out of retries.
    firewall_reject::CAUSE,
    // A full queue dropped its handshake: its retries run out.
    listen_overflow::CAUSE,
    // Timers that gave up.
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
    // A packet met a stack that had no connection for it.
    socket_gone::CAUSE,
    syncookie_failed::CAUSE,
    wrong_backend::CAUSE,
    // Somebody else: measured, then told by the reset alone.
    middlebox_idle_timeout::CAUSE,
    peer_aborted::CAUSE,
    peer_state_lost::CAUSE,
    unknown::CAUSE,
];

pub use conntrack_idle_expired::{limit as conntrack_limit, state_name as conntrack_state_name};
pub use ipvs_idle_expired::state_name as ipvs_state_name;
pub use middlebox_idle_timeout::sample as idle_sample;
pub use remedy::{Period, ipvs_timeout, limit_above};

/// The state of an IPVS entry with this name of the kernel's.
pub fn ipvs_state(name: &str) -> Option<u32> {
    (1..=10).find(|state| ipvs_state_name(*state) == name)
}

/// The cause with this id.
pub fn by_id(id: &str) -> Option<&'static Cause> {
    ALL.iter().find(|cause| cause.id == id)
}

/// For causes that have nothing to say.
fn nothing_ruled_out(_: &Evidence<'_>) -> Option<String> {
    None
}

/// For causes that need no fix.
fn no_fixes(_: &Evidence<'_>) -> Vec<Fix> {
    Vec::new()
}

/// For causes nobody fixes wrongly.
fn no_not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    Vec::new()
}

/// "973 s", "3.2 s", "250 ms".
fn human_s(seconds: f64) -> String {
    if seconds >= 100.0 {
        format!("{seconds:.0} s")
    } else if seconds >= 1.0 {
        format!("{seconds:.1} s")
    } else {
        // Adding zero takes the sign from a zero.
        format!("{:.0} ms", (seconds * 1000.0).round() + 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_lists_every_cause_with_its_family() {
        let mut table = String::new();
        for family in Family::ALL {
            let of_family: Vec<_> = ALL
                .iter()
                .filter(|cause| cause.family == family)
                .map(|cause| format!("`{}`", cause.id))
                .collect();
            table.push_str(&format!("| {} | {} |\n", family.id(), of_family.join(" ")));
        }
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&table), "README.md should hold:\n{table}");
    }

    #[test]
    fn every_cause_but_unknown_says_how_it_is_recognised_and_what_ends_it() {
        for cause in ALL {
            let doc = &cause.doc;
            let needs_no_fix = matches!(cause.family, Family::Benign | Family::Unknown);
            assert!(!doc.about.is_empty(), "{cause:?}");
            assert_eq!(doc.signs.is_empty(), cause.id == "unknown", "{cause:?}");
            assert_eq!(doc.fixes.is_empty(), needs_no_fix, "{cause:?}");
            assert_eq!(doc.not_fixes.is_empty(), needs_no_fix, "{cause:?}");
            assert!(doc.signs.is_sorted_by(|a, b| a.confidence >= b.confidence), "{cause:?}");
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
    fn no_sign_promises_more_than_the_contract_allows() {
        let ceilings = [
            ("nat_port_exhausted", Confidence::Correlated),
            ("syncookie_failed", Confidence::Correlated),
            ("middlebox_idle_timeout", Confidence::Inferred),
            ("peer_state_lost", Confidence::Inferred),
            ("wrong_backend", Confidence::Inferred),
        ];
        for (id, ceiling) in ceilings {
            let best = by_id(id).and_then(|cause| cause.doc.best(|_| true));
            assert!(best.is_none_or(|best| best <= ceiling), "{id}: {best:?}");
        }
    }

    #[test]
    fn a_moment_ago_is_zero_and_not_minus_zero() {
        assert_eq!(human_s(-0.0001), "0 ms");
        assert_eq!(human_s(-0.0), "0 ms");
        assert_eq!(human_s(0.0004), "0 ms");
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
