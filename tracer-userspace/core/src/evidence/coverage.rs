//! What was being looked at, and since when.

use rsttrace_model::flow::Nanos;

use crate::event::Session;

/// Their modules come with the first rule that wants them.
const REJECT_SIGNALS: [&str; 2] = ["firewall_reset", "firewall_reset6"];

/// Records that were lost are told within so long.
const LOSS_REPORTED_WITHIN: Nanos = 1_000_000_000;

/// The newest [`Session`], and when its signals came.
#[derive(Default)]
pub struct TraceCoverage {
    pub session: Session,
    /// When tracing began: older state may have died unseen.
    pub started: Nanos,
    /// When the resets of a firewall's rules were hooked, if that was after tracing began.
    reject_rules_since: Nanos,
    /// When it was last told that records were lost.
    lost_at: Option<Nanos>,
}

impl TraceCoverage {
    /// It comes again when a module brings a signal.
    pub fn update(&mut self, ts: Nanos, session: Session) {
        let is_new = |signal: &str| session.covers(signal) && !self.session.covers(signal);
        if self.started == 0 {
            self.started = ts;
        } else {
            // Of what may have died before, only IPVS entries matter.
            if is_new("ipvs_end") {
                self.started = ts;
            }
            if REJECT_SIGNALS.into_iter().any(is_new) {
                self.reject_rules_since = ts;
            }
        }
        self.session = session;
    }

    /// Records were lost, a moment ago at most.
    pub fn lost(&mut self, ts: Nanos) {
        self.lost_at = Some(ts);
    }

    /// Whether records may be missing of what happened at a time.
    pub fn lost_records(&self, at: Nanos) -> bool {
        self.lost_at.is_some_and(|lost| at.abs_diff(lost) <= LOSS_REPORTED_WITHIN)
    }

    /// Whether every answer of a rule with a reset or an ICMP error would have been seen at a time.
    pub fn saw_every_rule(&self, at: Nanos) -> bool {
        !REJECT_SIGNALS.into_iter().any(|signal| self.session.is_attaching(signal))
            && at > self.reject_rules_since
    }

    /// Whether every reset that this host sent at a time would have been seen: only then is one that
    /// nobody here sent somebody else's.
    pub fn saw_every_reset(&self, at: Nanos) -> bool {
        self.session.shows_all("reset_sent") && self.saw_every_rule(at) && !self.lost_records(at)
    }
}
