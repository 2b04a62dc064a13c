//! Formats numbers, times and lists of names for sentences.

use super::{gather::Tally, model::NameCount, text::Text};

/// "1 connection", "2 connections".
pub fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A duration in seconds: "973 s", "4.2 s", "20 ms".
pub fn seconds(seconds: f64) -> String {
    let rounded = (seconds * 10.0).round() / 10.0;
    if seconds >= 100.0 || (seconds >= 1.0 && rounded.fract() == 0.0) {
        format!("{seconds:.0} s")
    } else if seconds >= 1.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} ms", (seconds * 1000.0).round() + 0.0)
    }
}

/// A duration in nanoseconds: "45 s", "4 min", "1 h 20 min", "3 d 4 h".
pub fn span(ns: i64) -> String {
    let s = ns.max(0) / 1_000_000_000;
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big} {big_unit}"),
        small => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match s {
        0..120 => format!("{s} s"),
        120..7200 => two(s / 60, "min", s % 60, "s"),
        7200..172_800 => two(s / 3600, "h", s % 3600 / 60, "min"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

/// "92 %". "all" for all of them, "less than 1 %" below 1 %, and at most "99 %" for a part.
pub fn percent(part: u64, whole: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share = part as f64 / whole.max(1) as f64 * 100.0;
    match share {
        _ if part == whole => "all".into(),
        share if share < 1.0 => "less than 1 %".into(),
        share => format!("{:.0} %", share.min(99.0)),
    }
}

/// The entries of a tally, the most frequent first.
pub fn ranked(tally: &Tally) -> Vec<NameCount> {
    let mut ranked: Vec<NameCount> = tally
        .iter()
        .map(|(text, connections)| NameCount { text: text.clone(), connections: *connections })
        .collect();
    ranked.sort_by_key(|it| std::cmp::Reverse(it.connections));
    ranked
}

/// "a, b and 3 others": at most `most` names.
pub fn names<'a>(names: impl IntoIterator<Item = &'a str>, most: usize) -> String {
    let all: Vec<&str> = names.into_iter().collect();
    match all.as_slice() {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] if all.len() <= most => format!("{} and {last}", first.join(", ")),
        _ => {
            let shown = all.iter().take(most).copied().collect::<Vec<_>>().join(", ");
            let left = all.len() - most;
            format!("{shown} and {left} other{}", if left == 1 { "" } else { "s" })
        }
    }
}

/// [`names`] of counted names.
pub fn joined(counted: &[NameCount], most: usize) -> String {
    names(counted.iter().map(|it| it.text.as_str()), most)
}

/// [`joined`], with the number of connections whose name is known if some names are unknown.
pub fn joined_of(counted: &[NameCount], connections: u64, most: usize) -> String {
    let known: u64 = counted.iter().map(|it| it.connections).sum();
    match known < connections {
        true => format!("{} (known for {known})", joined(counted, most)),
        false => joined(counted, most),
    }
}

/// The text with a capital first letter.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Whether a text has the form of a cause id and so is safe in a query. A newer build may have more ids.
pub fn is_id(text: &Text) -> bool {
    let text = text.as_str();
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_formatted_with_a_unit_of_its_size() {
        for (value, text) in
            [(0.02, "20 ms"), (4.0, "4 s"), (4.25, "4.2 s"), (973.2, "973 s"), (99.96, "100 s")]
        {
            assert_eq!(seconds(value), text);
        }
        let s = 1_000_000_000;
        for (ns, text) in [
            (45 * s, "45 s"),
            (240 * s, "4 min"),
            (250 * s, "4 min 10 s"),
            (7500 * s, "2 h 5 min"),
            (-1, "0 s"),
        ] {
            assert_eq!(span(ns), text);
        }
    }

    #[test]
    fn a_part_is_never_shown_as_0_percent_or_as_all() {
        assert_eq!(percent(1, 1000), "less than 1 %");
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(5, 5), "all");
    }

    #[test]
    fn names_beyond_the_limit_are_counted() {
        assert_eq!(names(["a"], 2), "a");
        assert_eq!(names(["a", "b"], 2), "a and b");
        assert_eq!(names(["a", "b", "c", "d"], 2), "a, b and 2 others");
    }
}
