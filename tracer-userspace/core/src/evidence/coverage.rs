//! Which signals are traced, and since when.

use rsttrace_model::flow::Nanos;

use crate::event::Session;

/// The modules of these signals are loaded with the first rule that needs them.
const REJECT_SIGNALS: [&str; 2] = ["firewall_reset", "firewall_reset6"];

/// Lost records are reported within this time.
const LOSS_REPORTED_WITHIN: Nanos = 1_000_000_000;

/// The newest [`Session`], and since when its signals are traced.
#[derive(Default)]
pub struct TraceCoverage {
    pub session: Session,
    /// When tracing began: earlier ends of entries are not on record.
    pub started: Nanos,
    /// When the hooks for the resets of firewall rules were attached, if that was after tracing began.
    reject_rules_since: Nanos,
    /// When lost records were last reported.
    lost_at: Option<Nanos>,
}

impl TraceCoverage {
    /// Takes in a session. Another session arrives when a loaded module makes a signal available.
    pub fn update(&mut self, ts: Nanos, session: Session) {
        let is_new = |signal: &str| session.covers(signal) && !self.session.covers(signal);
        if self.started == 0 {
            self.started = ts;
        } else {
            // Of the ends before that, only those of IPVS entries matter.
            if is_new("ipvs_end") {
                self.started = ts;
            }
            if REJECT_SIGNALS.into_iter().any(is_new) {
                self.reject_rules_since = ts;
            }
        }
        self.session = session;
    }

    /// Notes that records were lost, shortly before `ts`.
    pub fn lost(&mut self, ts: Nanos) {
        self.lost_at = Some(ts);
    }

    /// Whether records of a time may be missing.
    pub fn lost_records(&self, at: Nanos) -> bool {
        self.lost_at.is_some_and(|lost| at.abs_diff(lost) <= LOSS_REPORTED_WITHIN)
    }

    /// Whether every answer of a rule, a reset or an ICMP error, was traced at a time.
    pub fn saw_every_rule(&self, at: Nanos) -> bool {
        !REJECT_SIGNALS.into_iter().any(|signal| self.session.is_attaching(signal))
            && at > self.reject_rules_since
    }

    /// Whether every reset that this host sent at a time was traced. Only then a reset without a record of its
    /// sending comes from a remote host.
    pub fn saw_every_reset(&self, at: Nanos) -> bool {
        self.session.shows_all("reset_sent") && self.saw_every_rule(at) && !self.lost_records(at)
    }
}
