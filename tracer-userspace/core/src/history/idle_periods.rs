//! At which idle ages connections to a service broke, and at which they lived on: what a device with an
//! idle limit on the path cannot hide.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use rsttrace_model::flow::Nanos;

/// Services remembered; the one heard of longest ago goes first.
const SERVICES: usize = 1024;
/// Breaks remembered of each service, the newest.
const BREAKS: usize = 32;

/// A connection that was reset from elsewhere after it had been idle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Break {
    pub at: Nanos,
    pub last_received: Nanos,
    pub idle_s: f64,
}

/// What is known of one service.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    breaks: VecDeque<Break>,
    longest_survived_s: Option<f64>,
    touched: Nanos,
}

/// "Never reset below `survived_s` idle, always at `broke_s` or more."
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bracket {
    pub survived_s: f64,
    pub broke_s: f64,
    /// Breaks that no single event can have caused.
    pub breaks: usize,
}

impl Ages {
    /// The limit that explains every sample: at least two breaks that are independent, and a
    /// connection that lived through less. `None` while that is not so, or when a connection survived
    /// longer than another one did.
    pub fn bracket(&self) -> Option<Bracket> {
        let survived_s = self.longest_survived_s?;
        let broke_s = self.breaks.iter().map(|sample| sample.idle_s).reduce(f64::min)?;
        let breaks = self.independent_breaks();
        (breaks >= 2 && survived_s < broke_s).then_some(Bracket { survived_s, broke_s, breaks })
    }

    /// The longest idle age that a connection survived, seconds.
    pub fn longest_survived_s(&self) -> Option<f64> {
        self.longest_survived_s
    }

    /// A server that restarts breaks all idle connections, whatever their age. Breaks are independent
    /// when the later connection still heard from its peer after the earlier one had broken.
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
        if ages.breaks.len() >= BREAKS {
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
        if self.services.len() >= SERVICES && !self.services.contains_key(&service) {
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
    fn one_break_is_no_bracket_however_many_survived() {
        assert_eq!(ages(&[at(400, 351)], &[100.0, 348.0]).bracket(), None);
    }

    #[test]
    fn breaks_without_a_survivor_are_no_bracket() {
        assert_eq!(ages(&[at(400, 351), at(900, 352)], &[]).bracket(), None);
    }

    #[test]
    fn two_independent_breaks_above_what_survived_are_a_bracket() {
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
    fn services_are_bounded() {
        let mut all = IdlePeriods::default();
        for port in 1..=1100 {
            let service = format!("10.0.0.1:{port}");
            all.record_survival(address(&service), port, 1.0);
        }
        assert_eq!(all.services.len(), SERVICES);
        assert!(all.of(address("10.0.0.1:1")).is_none());
    }
}
