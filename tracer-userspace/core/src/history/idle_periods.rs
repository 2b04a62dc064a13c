//! The idle times after which connections to a service broke, and those that connections survived. A device on
//! the path with an idle timeout shows in these samples.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use rsttrace_model::flow::Nanos;

/// Services kept; the service with the oldest sample is evicted first.
const MAX_SERVICES: usize = 1024;
/// Breaks kept of each service, the newest.
const MAX_BREAKS: usize = 32;

/// A connection that a remote host reset after it had been idle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Break {
    pub at: Nanos,
    pub last_received: Nanos,
    pub idle_s: f64,
}

/// The samples of one service.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    breaks: VecDeque<Break>,
    longest_survived_s: Option<f64>,
    touched: Nanos,
}

/// The limit is between two idle times: no connection was reset below `survived_s`, every connection was reset
/// at `broke_s` or more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bracket {
    pub survived_s: f64,
    pub broke_s: f64,
    /// Breaks that a single event cannot have caused.
    pub breaks: usize,
}

impl Ages {
    /// The limit that explains every sample. It needs at least two independent breaks and a connection that
    /// survived a shorter idle time. `None` without these samples, and when a connection survived a longer
    /// idle time than the shortest that broke one.
    pub fn bracket(&self) -> Option<Bracket> {
        let survived_s = self.longest_survived_s?;
        let broke_s = self.breaks.iter().map(|sample| sample.idle_s).reduce(f64::min)?;
        let breaks = self.independent_breaks();
        (breaks >= 2 && survived_s < broke_s).then_some(Bracket { survived_s, broke_s, breaks })
    }

    /// The longest idle time that a connection survived, seconds.
    pub fn longest_survived_s(&self) -> Option<f64> {
        self.longest_survived_s
    }

    /// A server that restarts breaks all idle connections, whatever their idle time. Two breaks are
    /// independent when the later connection still received from its peer after the earlier connection had
    /// broken.
    fn independent_breaks(&self) -> usize {
        let mut count = 0;
        let mut last: Option<Nanos> = None;
        for sample in &self.breaks {
            if last.is_none_or(|at| sample.last_received > at) {
                count += 1;
                last = Some(sample.at);
            }
        }
        count
    }
}

/// The samples of every service.
#[derive(Clone, Debug, Default)]
pub struct IdlePeriods {
    services: BTreeMap<SocketAddr, Ages>,
}

impl IdlePeriods {
    pub fn of(&self, service: SocketAddr) -> Option<&Ages> {
        self.services.get(&service)
    }

    pub fn record_break(&mut self, service: SocketAddr, sample: Break) {
        let ages = self.entry(service, sample.at);
        if ages.breaks.len() >= MAX_BREAKS {
            ages.breaks.pop_front();
        }
        ages.breaks.push_back(sample);
    }

    pub fn record_survival(&mut self, service: SocketAddr, at: Nanos, idle_s: f64) {
        let ages = self.entry(service, at);
        ages.longest_survived_s =
            Some(ages.longest_survived_s.map_or(idle_s, |known| known.max(idle_s)));
    }

    fn entry(&mut self, service: SocketAddr, at: Nanos) -> &mut Ages {
        if self.services.len() >= MAX_SERVICES && !self.services.contains_key(&service) {
            let oldest =
                self.services.iter().min_by_key(|(_, ages)| ages.touched).map(|(key, _)| *key);
            oldest.map(|key| self.services.remove(&key));
        }
        let ages = self.services.entry(service).or_default();
        ages.touched = at;
        ages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SECOND, address};

    fn at(broke: Nanos, idle_s: Nanos) -> Break {
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let idle = idle_s as f64;
        Break { at: broke * SECOND, last_received: (broke - idle_s) * SECOND, idle_s: idle }
    }

    fn ages(breaks: &[Break], survived: &[f64]) -> Ages {
        let mut all = IdlePeriods::default();
        let service = address("10.9.9.9:443");
        breaks.iter().for_each(|sample| all.record_break(service, *sample));
        survived.iter().for_each(|idle| all.record_survival(service, 1, *idle));
        all.of(service).cloned().unwrap_or_default()
    }

    #[test]
    fn one_break_does_not_make_a_bracket_however_many_connections_survived() {
        assert_eq!(ages(&[at(400, 351)], &[100.0, 348.0]).bracket(), None);
    }

    #[test]
    fn breaks_without_a_survivor_do_not_make_a_bracket() {
        assert_eq!(ages(&[at(400, 351), at(900, 352)], &[]).bracket(), None);
    }

    #[test]
    fn two_independent_breaks_above_a_survived_idle_time_make_a_bracket() {
        let bracket = ages(&[at(400, 351), at(900, 352)], &[100.0, 348.0]).bracket();
        assert_eq!(bracket, Some(Bracket { survived_s: 348.0, broke_s: 351.0, breaks: 2 }));
    }

    #[test]
    fn connections_that_a_restart_broke_together_count_once() {
        assert_eq!(ages(&[at(400, 351), at(410, 200), at(420, 390)], &[100.0]).bracket(), None);
    }

    #[test]
    fn a_connection_that_survived_longer_refutes_the_limit() {
        assert_eq!(ages(&[at(400, 351), at(900, 352)], &[360.0]).bracket(), None);
    }

    #[test]
    fn the_number_of_services_is_limited() {
        let mut all = IdlePeriods::default();
        for port in 1..=1100 {
            let service = format!("10.0.0.1:{port}");
            all.record_survival(address(&service), port, 1.0);
        }
        assert_eq!(all.services.len(), MAX_SERVICES);
        assert!(all.of(address("10.0.0.1:1")).is_none());
    }
}
