//! How soon incidents were printed. A busy guest delays single incidents; a slow tracer delays all of them.

use std::time::Duration;

use crate::{expect::delay, tracer::Record};

/// The contract's 1 s, plus the delay of an emulated processor on a machine with other guests.
const HALF_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Delays(Vec<Duration>);

impl Delays {
    pub fn add(&mut self, records: &[Record]) {
        self.0.extend(records.iter().filter_map(|record| delay(record).ok()));
    }

    /// The problem with the delays, if there is one.
    pub fn complaint(&mut self) -> Option<String> {
        self.0.sort_unstable();
        let (median, last) = (*self.0.get(self.0.len() / 2)?, *self.0.last()?);
        eprintln!("# half of {} incidents were printed within {median:.1?}", self.0.len());
        let late = median > HALF_WITHIN;
        late.then(|| {
            format!("half of the incidents were printed after {median:.1?}, one after {last:.1?}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(seconds: &[u64]) -> Option<String> {
        Delays(seconds.iter().map(|it| Duration::from_secs(*it)).collect()).complaint()
    }

    #[test]
    fn a_few_late_incidents_are_accepted_and_many_are_a_problem() {
        assert_eq!(complaint(&[]), None);
        assert_eq!(complaint(&[8, 1, 1, 1, 8]), None);
        assert!(complaint(&[8, 1, 8]).is_some_and(|it| it.contains("after 8.0s")));
    }
}
