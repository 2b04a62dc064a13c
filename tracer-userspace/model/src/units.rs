//! Seconds: conversions and human-readable text.

/// "973 s", "3.2 s", "250 ms".
pub fn human_s(seconds: f64) -> String {
    if seconds >= 100.0 {
        format!("{seconds:.0} s")
    } else if seconds >= 1.0 {
        format!("{seconds:.1} s")
    } else {
        // Adding zero removes the sign of a negative zero.
        format!("{:.0} ms", (seconds * 1000.0).round() + 0.0)
    }
}

pub fn whole(seconds: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole seconds")]
    {
        seconds.max(0.0) as u64
    }
}

/// A setting's value as a limit, seconds.
#[expect(clippy::cast_precision_loss, reason = "no timeout has 53 bits")]
pub fn as_seconds(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_ago_is_zero_and_not_minus_zero() {
        assert_eq!(human_s(-0.0001), "0 ms");
        assert_eq!(human_s(-0.0), "0 ms");
        assert_eq!(human_s(0.0004), "0 ms");
    }
}
