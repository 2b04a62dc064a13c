//! Folding: an incident like one that was already printed is counted, not printed again.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use rsttrace_core::incident::Incident;
use rsttrace_model::flow::Nanos;

const SECOND: Nanos = 1_000_000_000;

/// How often a growing count is printed.
const REPORT: Nanos = 10 * SECOND;

/// After this time without a repeat, the next incident is printed in full again.
const FORGET: Nanos = 300 * SECOND;

/// Groups kept at most; when there are more, all counts are printed and counting starts again.
const GROUPS: usize = 1024;

/// Printed incidents that are kept, so that the other end of one is printed as a line.
const PRINTED: usize = 64;

/// Incidents with the same key fold into one count.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    cause: &'static str,
    destination: SocketAddr,
    /// Name and container, not the pid: the workers of a pool are one owner.
    owner: Option<(String, Option<String>)>,
}

impl Key {
    fn of(incident: &Incident) -> Self {
        Self {
            cause: incident.cause.id,
            destination: incident.destination,
            owner: incident
                .owner
                .as_ref()
                .map(|owner| (owner.comm.clone(), owner.container_id.clone())),
        }
    }
}

struct Group {
    /// Repeats not printed yet.
    count: u64,
    /// When the first of them came.
    since: Nanos,
    /// When the newest incident of the group came.
    newest: Nanos,
}

/// What to print for an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Print {
    /// The whole incident.
    Full,
    /// One line: this is the other end of an incident that was printed in full.
    OtherEnd,
    /// Nothing: the incident was counted, or is the other end of one that was counted.
    Nothing,
}

/// Repeats of one kind, to be printed as a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeats {
    pub cause: &'static str,
    pub destination: SocketAddr,
    /// Process name: hostile text.
    pub owner: Option<String>,
    pub count: u64,
    /// Time since the first of these repeats, rounded up.
    pub seconds: u64,
}

/// What was printed, and the counts of what was not.
#[derive(Default)]
pub struct Folds {
    groups: BTreeMap<Key, Group>,
    /// Event ids of the incidents printed in full, newest last.
    printed: VecDeque<String>,
    /// The newest time so far.
    now: Nanos,
}

impl Folds {
    /// Decides what to print for `incident`, and counts the incident if it is a repeat.
    pub fn take(&mut self, incident: &Incident, now: Nanos) -> Print {
        // At the end of a stream the remaining cases are judged with `now` at its maximum.
        let now = if now == Nanos::MAX { self.now.max(incident.opened) } else { now };
        self.now = self.now.max(now);
        if let Some(first) = &incident.follows {
            return match self.printed.contains(first) {
                true => Print::OtherEnd,
                false => Print::Nothing,
            };
        }
        let key = Key::of(incident);
        if let Some(group) = self.groups.get_mut(&key) {
            if group.count == 0 {
                group.since = now;
            }
            group.count += 1;
            group.newest = now;
            return Print::Nothing;
        }
        self.groups.insert(key, Group { count: 0, since: now, newest: now });
        if self.printed.len() >= PRINTED {
            self.printed.pop_front();
        }
        self.printed.push_back(incident.event_id.clone());
        Print::Full
    }

    /// The counts that are due to be printed.
    pub fn due(&mut self, now: Nanos) -> Vec<Repeats> {
        if now != Nanos::MAX {
            self.now = self.now.max(now);
        }
        if self.groups.len() >= GROUPS {
            let repeats = self.rest();
            self.groups.clear();
            return repeats;
        }
        let repeats = self.report(|group| now.saturating_sub(group.since) >= REPORT);
        self.groups.retain(|_, group| now.saturating_sub(group.newest) < FORGET);
        repeats
    }

    /// All counts, due or not.
    pub fn rest(&mut self) -> Vec<Repeats> {
        self.report(|_| true)
    }

    fn report(&mut self, is_due: impl Fn(&Group) -> bool) -> Vec<Repeats> {
        let now = self.now;
        self.groups
            .iter_mut()
            .filter(|(_, group)| group.count > 0 && is_due(group))
            .map(|(key, group)| Repeats {
                cause: key.cause,
                destination: key.destination,
                owner: key.owner.as_ref().map(|(comm, _)| comm.clone()),
                count: std::mem::take(&mut group.count),
                seconds: now.saturating_sub(group.since).div_ceil(SECOND).max(1),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_core::testing::{article, replay};
    use rsttrace_model::owner::Owner;

    fn incident() -> Incident {
        replay(article()).remove(0)
    }

    fn of(comm: &str, pid: u32) -> Incident {
        Incident { owner: Some(Owner { pid, comm: comm.into(), ..Owner::default() }), ..incident() }
    }

    #[test]
    fn a_steady_trickle_is_printed_in_full_once() {
        let mut folds = Folds::default();
        assert_eq!(folds.take(&incident(), 0), Print::Full);
        for minute in 1..60 {
            let now = minute * 60 * SECOND;
            assert_eq!(folds.take(&incident(), now), Print::Nothing);
            let due = folds.due(now + REPORT);
            assert_eq!(due.iter().map(|repeats| repeats.count).collect::<Vec<_>>(), [1]);
        }
    }

    #[test]
    fn after_a_long_time_without_repeats_an_incident_is_printed_in_full_again() {
        let mut folds = Folds::default();
        folds.take(&incident(), 0);
        assert!(folds.due(FORGET).is_empty());
        assert_eq!(folds.take(&incident(), FORGET + 1), Print::Full);
    }

    #[test]
    fn a_count_covers_the_time_since_its_first_repeat() {
        let mut folds = Folds::default();
        folds.take(&incident(), 0);
        folds.take(&incident(), 100 * SECOND);
        folds.take(&incident(), 103 * SECOND);
        assert!(folds.due(103 * SECOND).is_empty());
        let rest = folds.rest();
        assert_eq!((rest[0].count, rest[0].seconds), (2, 3));
        assert!(folds.rest().is_empty());
    }

    #[test]
    fn an_incident_judged_at_the_end_of_a_stream_counts_at_the_time_it_opened() {
        let mut folds = Folds::default();
        let at = |ts| Incident { opened: ts, ..incident() };
        folds.take(&at(100 * SECOND), 100 * SECOND);
        folds.take(&at(102 * SECOND), Nanos::MAX);
        folds.take(&at(104 * SECOND), Nanos::MAX);
        let rest = folds.due(Nanos::MAX);
        assert_eq!((rest[0].count, rest[0].seconds), (2, 2));
    }

    #[test]
    fn workers_of_one_program_fold_and_programs_do_not() {
        let mut folds = Folds::default();
        assert_eq!(folds.take(&of("node", 1), 0), Print::Full);
        assert_eq!(folds.take(&of("node", 2), 0), Print::Nothing);
        assert_eq!(folds.take(&of("java", 3), 0), Print::Full);
    }

    #[test]
    fn the_other_end_of_a_counted_incident_is_not_printed() {
        let mut folds = Folds::default();
        let first = incident();
        folds.take(&first, 0);
        let end = |id: &str| Incident { follows: Some(id.into()), ..incident() };
        assert_eq!(folds.take(&end(&first.event_id), 1), Print::OtherEnd);
        assert_eq!(folds.take(&end("of one that was counted"), 2), Print::Nothing);
        assert!(folds.rest().is_empty(), "the other end does not count");
    }

    #[test]
    fn many_destinations_do_not_grow_the_memory() {
        let mut folds = Folds::default();
        for port in 0..5000 {
            let mut incident = incident();
            incident.destination.set_port(port);
            folds.take(&incident, 0);
            folds.due(0);
        }
        assert!(folds.groups.len() <= GROUPS);
    }
}
