//! Sources of unmatched segments: a scan sends thousands, and one report says as much as all of them.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use rsttrace_model::flow::Nanos;

/// One report of each source in this time.
const REPORTED_EVERY: Nanos = 10_000_000_000;

/// Sources kept. A scan from more addresses is reported more often.
const MAX_SOURCES: usize = 4096;

/// When an unmatched segment of each source was last reported.
#[derive(Default)]
pub struct UnmatchedSources {
    reported: HashMap<IpAddr, Nanos>,
    oldest_first: VecDeque<(IpAddr, Nanos)>,
}

impl UnmatchedSources {
    /// Whether a segment of this source is to be reported, which is noted.
    pub fn is_first(&mut self, source: IpAddr, ts: Nanos) -> bool {
        let last = self.reported.get(&source);
        if last.is_some_and(|last| ts.abs_diff(*last) < REPORTED_EVERY) {
            return false;
        }
        if self.oldest_first.len() >= MAX_SOURCES
            && let Some((oldest, at)) = self.oldest_first.pop_front()
            && self.reported.get(&oldest) == Some(&at)
        {
            self.reported.remove(&oldest);
        }
        self.reported.insert(source, ts);
        self.oldest_first.push_back((source, ts));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SECOND, address};

    #[test]
    fn a_source_is_reported_once_in_ten_seconds_and_the_store_is_bounded() {
        let mut sources = UnmatchedSources::default();
        let scanner = address("203.0.113.9:1").ip();
        let reported = [0, 9, 10, 15, 20].map(|s| sources.is_first(scanner, s * SECOND));
        assert_eq!(reported, [true, false, true, false, true]);
        for n in 0..MAX_SOURCES {
            let other = IpAddr::from((n as u128 + (1 << 64)).to_be_bytes());
            assert!(sources.is_first(other, 20 * SECOND));
        }
        assert_eq!(
            (sources.reported.len(), sources.oldest_first.len()),
            (MAX_SOURCES, MAX_SOURCES)
        );
        assert!(sources.is_first(scanner, 21 * SECOND), "forgotten");
    }
}
