//! How soon incidents were printed. A guest whose processors have other work delays any one of them; a tracer that is
//! slow delays them all.

use std::time::Duration;

use crate::{expect::delay, tracer::Record};

/// The contract's second, and what an emulated processor on a machine with other guests adds.
const HALF_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Delays(Vec<Duration>);

impl Delays {
    pub fn add(&mut self, records: &[Record]) {
        self.0.extend(records.iter().filter_map(|record| delay(record).ok()));
    }

    /// What is wrong with them, if anything.
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
    fn a_few_late_ones_are_the_guests_and_many_are_the_tracers() {
        assert_eq!(complaint(&[]), None);
        assert_eq!(complaint(&[8, 1, 1, 1, 8]), None);
        assert!(complaint(&[8, 1, 8]).is_some_and(|it| it.contains("after 8.0s")));
    }
}
