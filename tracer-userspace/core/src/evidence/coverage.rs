//! Which signals are traced, and since when.

use std::collections::BTreeMap;

use rsttrace_model::flow::Nanos;

use crate::event::{Session, SkippedRuns};

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
    /// Since when each signal is traced.
    since: BTreeMap<String, Nanos>,
    /// When lost records were last reported.
    lost_at: Option<Nanos>,
    /// How often the kernel skipped each hook, and when the count last grew.
    skipped: BTreeMap<String, (u64, Nanos)>,
}

impl TraceCoverage {
    /// Takes in a session. Another session arrives when a loaded module makes a signal available.
    pub fn update(&mut self, ts: Nanos, session: Session) {
        let is_new = |signal: &str| session.covers(signal) && !self.session.covers(signal);
        if self.started == 0 {
            self.started = ts;
        } else if REJECT_SIGNALS.into_iter().any(is_new) {
            self.reject_rules_since = ts;
        }
        self.since.retain(|signal, _| session.covers(signal));
        for signal in session.coverage.iter().filter(|signal| signal.way.is_some()) {
            self.since.entry(signal.id.clone()).or_insert(ts);
        }
        self.session = session;
    }

    /// Notes that records were lost, shortly before `ts`.
    pub fn lost(&mut self, ts: Nanos) {
        self.lost_at = Some(ts);
    }

    /// Notes that the kernel skipped runs of hooks, shortly before `ts`.
    pub fn skipped(&mut self, ts: Nanos, runs: SkippedRuns) {
        let SkippedRuns::ByHook(runs) = runs else {
            self.lost(ts);
            return;
        };
        for (hook, count) in runs {
            let known = self.skipped.entry(hook).or_insert((0, 0));
            if count > known.0 {
                *known = (count, ts);
            }
        }
    }

    /// When a record of a signal was last lost, as far as is known; 0 for never.
    pub fn last_gap(&self, signal: &str) -> Nanos {
        let hooks = self.session.hooks(signal);
        let skipped = hooks.filter_map(|hook| self.skipped.get(hook)).map(|(_, at)| *at);
        skipped.chain(self.lost_at).max().unwrap_or(0)
    }

    /// Since when every record of a signal is in the stream; `None` where it is not traced.
    pub fn seen_since(&self, signal: &str) -> Option<Nanos> {
        self.since.get(signal).map(|since| self.last_gap(signal).max(*since))
    }

    /// Whether records of resets that this host sent at a time may be missing.
    pub fn lost_records(&self, at: Nanos) -> bool {
        let signals = REJECT_SIGNALS.into_iter().chain(["reset_sent"]);
        let mut gaps = signals.map(|signal| self.last_gap(signal)).filter(|gap| *gap != 0);
        gaps.any(|gap| at.abs_diff(gap) <= LOSS_REPORTED_WITHIN)
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
