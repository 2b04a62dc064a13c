//! The time window of `--since` and `--until`.

use std::str::FromStr;

use jiff::{Timestamp, civil::Time as Clock, tz::TimeZone};

const DAY: i64 = 86_400_000_000_000;

/// A time as a user gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// An RFC 3339 time, in nanoseconds since the epoch.
    At(i64),
    /// HH:MM or HH:MM:SS in UTC, in nanoseconds since midnight. The day comes from the file.
    OfDay(i64),
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let of_day = || {
            let digits = |it: &str| it.len() == 2 && it.bytes().all(|b| b.is_ascii_digit());
            let clock: Clock = text.split(':').all(digits).then(|| text.parse().ok())??;
            let midnight = clock.to_datetime(jiff::civil::date(1970, 1, 1));
            let time = midnight.to_zoned(TimeZone::UTC).ok()?.timestamp();
            i64::try_from(time.as_nanosecond()).ok()
        };
        let at = || i64::try_from(text.parse::<Timestamp>().ok()?.as_nanosecond()).ok();
        at().map(Self::At).or_else(|| of_day().map(Self::OfDay)).ok_or_else(|| {
            format!("invalid time `{text}` (expected a time such as 2026-11-21T03:00:00Z or 03:00)")
        })
    }
}

/// Times from `since` (included) to `until` (excluded).
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    pub since: Option<When>,
    pub until: Option<When>,
}

impl Window {
    /// Gives each time of day a date. `since` gets the date of the file's first event, or the next day if it
    /// would be more than half a day before that event. `until` is the first such time after `since`,
    /// or after the first event when `since` is not set.
    pub fn resolve(&mut self, first_ns: i64) {
        if let Some(When::OfDay(of_day)) = self.since {
            let that_day = first_ns - first_ns.rem_euclid(DAY) + of_day;
            let passed = first_ns.saturating_sub(that_day) > DAY / 2;
            self.since = Some(When::At(that_day.saturating_add(if passed { DAY } else { 0 })));
        }
        if let Some(When::OfDay(of_day)) = self.until {
            let after = self.since_ns().unwrap_or(first_ns);
            let that_day = after - after.rem_euclid(DAY) + of_day;
            let passed = that_day <= after;
            self.until = Some(When::At(that_day.saturating_add(if passed { DAY } else { 0 })));
        }
    }

    /// Whether neither end is set.
    pub fn is_open(&self) -> bool {
        self.since.is_none() && self.until.is_none()
    }

    pub fn since_ns(&self) -> Option<i64> {
        at(self.since)
    }

    pub fn until_ns(&self) -> Option<i64> {
        at(self.until)
    }

    pub fn is_before(&self, wall_ns: i64) -> bool {
        self.since_ns().is_some_and(|since| wall_ns < since)
    }

    pub fn is_after(&self, wall_ns: i64) -> bool {
        self.until_ns().is_some_and(|until| wall_ns >= until)
    }

    pub fn contains(&self, wall_ns: i64) -> bool {
        !self.is_before(wall_ns) && !self.is_after(wall_ns)
    }
}

fn at(when: Option<When>) -> Option<i64> {
    match when {
        Some(When::At(ns)) => Some(ns),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns(text: &str) -> i64 {
        match text.parse() {
            Ok(When::At(ns)) => ns,
            other => unreachable!("{other:?}"),
        }
    }

    fn window(first: &str, since: &str, until: &str) -> Window {
        let mut window = Window { since: since.parse().ok(), until: until.parse().ok() };
        window.resolve(ns(first));
        window
    }

    #[test]
    fn a_time_of_day_gets_the_date_of_the_files_first_event() {
        let window = window("2026-11-21T02:14:07Z", "03:00", "04:00:30");
        assert_eq!(window.since_ns(), Some(ns("2026-11-21T03:00:00Z")));
        assert_eq!(window.until_ns(), Some(ns("2026-11-21T04:00:30Z")));
    }

    #[test]
    fn a_window_over_midnight_ends_on_the_next_day() {
        for first in ["2026-11-21T23:40:00Z", "2026-11-21T23:55:00Z"] {
            let window = window(first, "23:50", "00:10");
            assert_eq!(window.since_ns(), Some(ns("2026-11-21T23:50:00Z")), "{first}");
            assert_eq!(window.until_ns(), Some(ns("2026-11-22T00:10:00Z")), "{first}");
        }
        let window = window("2026-11-21T23:40:00Z", "00:05", "");
        assert_eq!(window.since_ns(), Some(ns("2026-11-22T00:05:00Z")));
    }

    #[test]
    fn the_window_includes_since_and_excludes_until() {
        let (since, until) = ("2026-11-21T03:00:00Z", "2026-11-21T04:00:00+01:00");
        assert!(!window(since, since, until).contains(ns(since)), "the end is not after it");
        let window = window(since, since, "2026-11-21T04:00:00Z");
        assert!(window.contains(ns(since)) && !window.contains(ns("2026-11-21T04:00:00Z")));
    }

    #[test]
    fn an_invalid_time_is_refused() {
        for text in ["", "3", "25:00", "03:60", "3:00", "yesterday", "2026-11-21", "T03:00"] {
            assert!(text.parse::<When>().is_err(), "{text}");
        }
    }
}
