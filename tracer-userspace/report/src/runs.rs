//! What the runs in a stream counted. A summary event holds the counts of its run so far, so the last
//! summary of each run counts. A file may hold several runs one after the other, and several hosts.

use std::collections::BTreeMap;

use super::{
    parsed::{CauseCount, Counts, ParsedIncident, ParsedSummary},
    text::Text,
};

type PerCause = BTreeMap<Text, u64>;

/// The current run of a host.
#[derive(Default)]
struct Run {
    newest_ns: i64,
    sequence: u64,
    /// The newest summary, and the newest one before the window.
    now: Option<Counts>,
    before: Option<Counts>,
    /// Incidents of the stream in the window: broken connections, and benign resets by cause.
    broken: u64,
    benign: PerCause,
    lost: u64,
}

/// The runs of all hosts.
#[derive(Default)]
pub struct Runs {
    open: BTreeMap<Text, Run>,
    total: Totals,
}

/// The sums over all runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub benign: BTreeMap<Text, u64>,
    pub lost: u64,
    pub unreadable: u64,
    pub forgotten: u64,
    pub absorbed: u64,
    /// Broken connections that the summaries count but the stream does not hold.
    pub missing: u64,
}

impl Runs {
    /// The run of an event. A run ended and a new one began when `is_new` holds for an event that is later
    /// than all others of its host.
    fn at(&mut self, host: &Text, wall_ns: i64, is_new: impl Fn(&Run) -> bool) -> &mut Run {
        let run = self.open.entry(host.clone()).or_default();
        if wall_ns > run.newest_ns && is_new(run) {
            self.total.add(&std::mem::take(run));
        }
        run.newest_ns = run.newest_ns.max(wall_ns);
        run
    }

    /// Counts an incident. One that is not selected only updates the sequence and the lost events.
    pub fn incident(&mut self, incident: &ParsedIncident, selected: bool) {
        let sequence = incident.sequence;
        let run = self.at(&incident.host, incident.wall_ns, |run| sequence < run.sequence);
        run.sequence = run.sequence.max(sequence);
        run.lost = run.lost.max(incident.lost_events);
        if !selected || incident.follows.is_some() {
            return;
        }
        match incident.is_benign() {
            true => *run.benign.entry(incident.cause.clone()).or_default() += 1,
            false => run.broken += 1,
        }
    }

    /// Keeps a summary; `before_window` when it is older than the selected window.
    pub fn summary(&mut self, summary: ParsedSummary, before_window: bool) {
        let ParsedSummary { wall_ns, host, counts, lost_events } = summary;
        let run =
            self.at(&host, wall_ns, |run| run.now.as_ref().is_some_and(|now| counts.is_below(now)));
        run.lost = run.lost.max(lost_events);
        if before_window {
            run.before = Some(counts.clone());
        }
        run.now = Some(counts);
    }

    pub fn finish(mut self) -> Totals {
        for run in self.open.into_values() {
            self.total.add(&run);
        }
        self.total
    }
}

impl Totals {
    fn add(&mut self, run: &Run) {
        let now = run.now.clone().unwrap_or_default();
        let before = run.before.clone().unwrap_or_default();
        let mut benign = run.benign.clone();
        for CauseCount { cause, count } in &now.benign {
            let counted = count.saturating_sub(of(&before.benign, cause));
            let seen = benign.entry(cause.clone()).or_default();
            *seen = counted.max(*seen);
        }
        for (cause, count) in benign.into_iter().filter(|(_, count)| *count > 0) {
            let sum = self.benign.entry(cause).or_default();
            *sum = sum.saturating_add(count);
        }
        let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
        add(&mut self.lost, run.lost);
        add(&mut self.unreadable, now.unreadable);
        add(&mut self.forgotten, now.forgotten);
        add(&mut self.absorbed, now.absorbed);
        add(&mut self.missing, sum(&now.incidents).saturating_sub(run.broken));
    }
}

impl Counts {
    /// Whether a count is lower than in `earlier`, which does not happen within a run: counts only grow.
    fn is_below(&self, earlier: &Self) -> bool {
        let fewer = |now: &[CauseCount], then: &[CauseCount]| {
            then.iter().any(|then| of(now, &then.cause) < then.count)
        };
        self.absorbed < earlier.absorbed
            || fewer(&self.incidents, &earlier.incidents)
            || fewer(&self.benign, &earlier.benign)
    }
}

fn of(list: &[CauseCount], cause: &Text) -> u64 {
    list.iter().find(|it| it.cause == *cause).map_or(0, |it| it.count)
}

fn sum(list: &[CauseCount]) -> u64 {
    list.iter().fold(0, |sum, it| sum.saturating_add(it.count))
}
