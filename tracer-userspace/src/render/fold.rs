//! Incidents like one already told are counted, not told again.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use rsttrace_core::incident::Incident;
use rsttrace_model::flow::Nanos;

const SECOND: Nanos = 1_000_000_000;

/// How often a growing count is told.
const REPORT: Nanos = 10 * SECOND;

/// After this long without a repeat, the next one is news again and told in full.
const FORGET: Nanos = 300 * SECOND;

/// More groups than a person can follow; beyond it counting starts afresh.
const GROUPS: usize = 1024;

/// Stories whose other end may still be told in a line.
const TOLD: usize = 64;

/// Incidents with the same key are the same news.
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
    /// Repeats not yet reported.
    count: u64,
    /// When the first of them came.
    since: Nanos,
    /// When the newest incident of the group came.
    newest: Nanos,
}

/// What is to be printed for an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// All of it.
    Full,
    /// One line: it is the other end of an incident told in full.
    OtherEnd,
    /// Nothing: it was counted, or it is the other end of one that was.
    Nothing,
}

/// Repeats of one kind, to be told in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeats {
    pub cause: &'static str,
    pub destination: SocketAddr,
    /// Process name: hostile text.
    pub owner: Option<String>,
    pub count: u64,
    /// Time in which they came.
    pub seconds: u64,
}

/// The memory of what was told.
#[derive(Default)]
pub struct Folds {
    groups: BTreeMap<Key, Group>,
    /// Event ids, newest last.
    told: VecDeque<String>,
    /// The newest time heard of.
    now: Nanos,
}

impl Folds {
    /// Decides how to tell `incident`, and counts it when it is not told.
    pub fn take(&mut self, incident: &Incident, now: Nanos) -> Telling {
        // At the end of a stream everything is judged, at the end of time.
        let now = if now == Nanos::MAX { self.now.max(incident.opened) } else { now };
        self.now = self.now.max(now);
        if let Some(first) = &incident.follows {
            return match self.told.contains(first) {
                true => Telling::OtherEnd,
                false => Telling::Nothing,
            };
        }
        let key = Key::of(incident);
        if let Some(group) = self.groups.get_mut(&key) {
            if group.count == 0 {
                group.since = now;
            }
            group.count += 1;
            group.newest = now;
            return Telling::Nothing;
        }
        self.groups.insert(key, Group { count: 0, since: now, newest: now });
        if self.told.len() >= TOLD {
            self.told.pop_front();
        }
        self.told.push_back(incident.event_id.clone());
        Telling::Full
    }

    /// Counts whose time has come.
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

    /// All counts.
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
    fn a_steady_trickle_is_told_in_full_once() {
        let mut folds = Folds::default();
        assert_eq!(folds.take(&incident(), 0), Telling::Full);
        for minute in 1..60 {
            let now = minute * 60 * SECOND;
            assert_eq!(folds.take(&incident(), now), Telling::Nothing);
            let due = folds.due(now + REPORT);
            assert_eq!(due.iter().map(|repeats| repeats.count).collect::<Vec<_>>(), [1]);
        }
    }

    #[test]
    fn after_a_long_silence_it_is_news_again() {
        let mut folds = Folds::default();
        folds.take(&incident(), 0);
        assert!(folds.due(FORGET).is_empty());
        assert_eq!(folds.take(&incident(), FORGET + 1), Telling::Full);
    }

    #[test]
    fn the_time_is_that_in_which_the_repeats_came() {
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
    fn what_is_judged_at_the_end_of_a_stream_came_when_it_opened() {
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
        assert_eq!(folds.take(&of("node", 1), 0), Telling::Full);
        assert_eq!(folds.take(&of("node", 2), 0), Telling::Nothing);
        assert_eq!(folds.take(&of("java", 3), 0), Telling::Full);
    }

    #[test]
    fn the_other_end_of_a_counted_incident_stays_silent() {
        let mut folds = Folds::default();
        let first = incident();
        folds.take(&first, 0);
        let end = |id: &str| Incident { follows: Some(id.into()), ..incident() };
        assert_eq!(folds.take(&end(&first.event_id), 1), Telling::OtherEnd);
        assert_eq!(folds.take(&end("of one that was counted"), 2), Telling::Nothing);
        assert!(folds.rest().is_empty(), "an other end does not count");
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
