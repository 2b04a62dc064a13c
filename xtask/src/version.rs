//! Debian's version order, and kernel series such as `6.12`.

use std::{cmp::Ordering, fmt, str::FromStr};

use anyhow::{Result, bail};

/// Compares two Debian package versions as dpkg does (deb-version(7)).
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a_epoch, a) = split_epoch(a);
    let (b_epoch, b) = split_epoch(b);
    let (a_upstream, a_revision) = a.rsplit_once('-').unwrap_or((a, ""));
    let (b_upstream, b_revision) = b.rsplit_once('-').unwrap_or((b, ""));
    a_epoch
        .cmp(&b_epoch)
        .then_with(|| compare_part(a_upstream, b_upstream))
        .then_with(|| compare_part(a_revision, b_revision))
}

fn split_epoch(version: &str) -> (u64, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
        None => (0, version),
    }
}

/// Alternates between the longest run of non-digits and the longest run of digits.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (a_word, a_rest) = split_while(a, |c| !c.is_ascii_digit());
        let (b_word, b_rest) = split_while(b, |c| !c.is_ascii_digit());
        let (a_number, a_rest) = split_while(a_rest, |c| c.is_ascii_digit());
        let (b_number, b_rest) = split_while(b_rest, |c| c.is_ascii_digit());
        let order = compare_words(a_word, b_word).then_with(|| compare_numbers(a_number, b_number));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (a_rest, b_rest);
    }
    Ordering::Equal
}

fn split_while(s: &str, keep: impl Fn(char) -> bool) -> (&str, &str) {
    s.split_at(s.find(|c| !keep(c)).unwrap_or(s.len()))
}

/// `~` sorts before the end, the end before letters, letters before the rest.
fn compare_words(a: &str, b: &str) -> Ordering {
    let rank = |c: Option<char>| match c {
        Some('~') => 0,
        None => 1,
        Some(c) if c.is_ascii_alphabetic() => 2 + c as u32,
        Some(c) => 0x100 + c as u32,
    };
    let (mut a, mut b) = (a.chars(), b.chars());
    loop {
        let (x, y) = (a.next(), b.next());
        match rank(x).cmp(&rank(y)) {
            Ordering::Equal if x.is_none() => return Ordering::Equal,
            Ordering::Equal => {}
            order => return order,
        }
    }
}

/// Numbers of any length: without leading zeros, the longer is the larger.
fn compare_numbers(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// A kernel series: the first two numbers of its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor } = self;
        f.pad(&format!("{major}.{minor}"))
    }
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        if let Some((major, minor)) = word.split_once('.')
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
        {
            return Ok(Self { major, minor });
        }
        bail!("invalid kernel series `{word}` (expected two numbers with a dot, such as 6.12)");
    }
}

/// The series to run for the wanted one: the same, else the next newer one, else the newest.
pub fn nearest(wanted: Series, offered: impl Iterator<Item = Series> + Clone) -> Option<Series> {
    let above = offered.clone().filter(|s| *s >= wanted).min();
    above.or_else(|| offered.max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_versions_as_dpkg_does() {
        let sorted = [
            "5.10.251-5",
            "6.1.180-1~deb11u1",
            "6.1.180-1",
            "6.1.192-1",
            "6.1.192-2",
            "6.12.9-1",
            "6.12.117-1~bpo12+1",
            "6.12.117-1",
            "7.3~rc7-1~exp1",
            "7.3-1",
            "7.3.1-1",
            "1:1.0-1",
        ];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
            assert_eq!(compare(pair[0], pair[0]), Ordering::Equal, "{pair:?}");
        }
        assert_eq!(compare("1.02-1", "1.2-1"), Ordering::Equal);
    }

    fn series(word: &str) -> Series {
        word.parse().expect("a series")
    }

    #[test]
    fn reads_series() {
        assert_eq!(series("6.12"), Series { major: 6, minor: 12 });
        for word in ["6", "bookworm", "6.12.1", "6.x", "", ".", "./vmlinuz", "6."] {
            let error = word.parse::<Series>().expect_err(word).to_string();
            assert!(error.contains(&format!("`{word}`")), "{error}");
        }
    }

    #[test]
    fn takes_the_next_newer_series_else_the_newest() {
        let offered = ["5.10", "6.1", "6.12", "7.2"].map(series);
        let pick = |word| nearest(series(word), offered.iter().copied());
        assert_eq!(pick("6.12"), Some(series("6.12")));
        assert_eq!(pick("6.2"), Some(series("6.12")));
        assert_eq!(pick("4.19"), Some(series("5.10")));
        assert_eq!(pick("8.0"), Some(series("7.2")));
        assert_eq!(nearest(series("6.1"), [].into_iter()), None);
    }
}
