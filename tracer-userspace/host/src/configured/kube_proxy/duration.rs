//! Durations as Go writes and reads them (`time.ParseDuration`, time/format.go).

/// Nanoseconds of each unit. Both characters for "micro" are accepted.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads `1h30m`, `1.5h`, `.5s` or `0`, in nanoseconds. `None` for what Go refuses, for more than Go's
/// 292 years, and for less than zero, which kube-proxy refuses (pkg/proxy/apis/config/validation).
pub fn parse(text: &str) -> Option<u64> {
    let (text, is_negative) = match text.strip_prefix('-') {
        Some(text) => (text, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (name, next) = after.split_at(end);
        let (_, unit) = UNITS.into_iter().find(|(unit, _)| *unit == name)?;
        let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
        let part = whole.checked_mul(unit)?.checked_add(below_one(fraction, unit))?;
        total = total.checked_add(part)?;
        rest = next;
    }
    let is_valid = !text.is_empty() && i64::try_from(total).is_ok();
    (is_valid && (!is_negative || total == 0)).then_some(total)
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The nanoseconds of the digits after the point, cut off. No unit has more than 13 digits.
fn below_one(fraction: &str, unit: u64) -> u64 {
    let mut nanoseconds = 0;
    let mut unit = u128::from(unit);
    let mut scale = 1_u128;
    for digit in fraction.bytes().take(18) {
        scale *= 10;
        nanoseconds = nanoseconds * 10 + u128::from(digit - b'0');
    }
    unit = unit * nanoseconds / scale;
    u64::try_from(unit).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, wanted) in [
            ("0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("900s", 900 * SECOND),
            ("24h0m0s", 86_400 * SECOND),
            ("1h30m", 5400 * SECOND),
            ("1.5h", 5400 * SECOND),
            ("0.5h", 1800 * SECOND),
            (".5h", 1800 * SECOND),
            ("1.h", 3600 * SECOND),
            ("2m0.5s", 120 * SECOND + SECOND / 2),
            ("+5m", 300 * SECOND),
            ("500ms", SECOND / 2),
            ("3us", 3000),
            ("3\u{b5}s", 3000),
            ("3\u{3bc}s7ns", 3007),
            ("0.33333333333333333333h", 1_199_999_999_999),
        ] {
            assert_eq!(parse(text), Some(wanted), "{text}");
        }
    }

    #[test]
    fn what_go_or_kube_proxy_refuses_is_not_a_duration() {
        for text in [
            "",
            "+",
            "-",
            "900",
            "h",
            ".s",
            ".",
            "1",
            "5d",
            "1 h",
            " 1h",
            "1h ",
            "-1h",
            "1e3s",
            "1H",
            "--1s",
            "9223372037s",
            "99999999999999999999h",
            "1.5.5s",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[-+]?([0-9.]{0,25}(h|m|s|ms|us|µs|ns|\\PC)?){0,4}") {
            let _ = parse(&text);
        }

        #[test]
        fn whole_hours_minutes_and_seconds_add_up(h in 0_u64..10_000, m in 0_u64..10_000, s in 0_u64..10_000) {
            prop_assert_eq!(parse(&format!("{h}h{m}m{s}s")), Some((h * 3600 + m * 60 + s) * SECOND));
        }
    }
}
