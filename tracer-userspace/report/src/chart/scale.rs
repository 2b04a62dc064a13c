//! Maps values to coordinates, and places the ticks.

use super::{BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH};

pub struct Tick {
    pub at: f64,
    pub text: String,
}

/// An axis.
pub struct Scale {
    from: f64,
    to: f64,
    /// Coordinates of `from` and `to`.
    start: f64,
    end: f64,
    log: bool,
    pub ticks: Vec<Tick>,
}

impl Scale {
    /// A horizontal axis from left to right.
    pub fn across(from: f64, to: f64, log: bool, ticks: Vec<Tick>) -> Self {
        Self { from, to, start: LEFT, end: WIDTH - RIGHT, log, ticks }
    }

    /// A vertical axis from 0 upwards, with whole numbers at the ticks.
    pub fn up(most: u64) -> Self {
        let step = whole_step(most);
        let top = most.max(1).div_ceil(step) * step;
        let ticks = (0..=top / step)
            .map(|tick| Tick { at: (tick * step) as f64, text: (tick * step).to_string() })
            .collect();
        Self::upwards(top as f64, ticks)
    }

    /// A vertical axis from 0 upwards.
    pub fn upwards(top: f64, ticks: Vec<Tick>) -> Self {
        Self { from: 0.0, to: top, start: HEIGHT - BOTTOM, end: TOP, log: false, ticks }
    }

    /// The coordinate of a value; values beyond the axis are clamped.
    pub fn place(&self, value: f64) -> f64 {
        let [value, from, to] = match self.log {
            true => [value.max(self.from), self.from, self.to].map(f64::log10),
            false => [value, self.from, self.to],
        };
        let share = if to > from { ((value - from) / (to - from)).clamp(0.0, 1.0) } else { 0.5 };
        self.start + share * (self.end - self.start)
    }
}

/// The smallest step of 1, 2 or 5 times a power of ten that reaches `most` in at most five steps.
fn whole_step(most: u64) -> u64 {
    let mut decade = 1_u64;
    loop {
        for step in [decade, decade.saturating_mul(2), decade.saturating_mul(5)] {
            if most.div_ceil(step) <= 5 {
                return step;
            }
        }
        decade = decade.saturating_mul(10);
    }
}

/// Usual time steps, in milliseconds.
const STEPS_MS: [i64; 36] = [
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    15_000,
    20_000,
    30_000,
    60_000,
    120_000,
    300_000,
    600_000,
    900_000,
    1_200_000,
    1_800_000,
    3_600_000,
    7_200_000,
    10_800_000,
    14_400_000,
    21_600_000,
    28_800_000,
    43_200_000,
    86_400_000,
    172_800_000,
    345_600_000,
    604_800_000,
    1_209_600_000,
    2_419_200_000,
];

/// The smallest usual step that fits fewer than `most` times into `length_ms`; a longer one where none
/// does.
pub fn time_step_ms(length_ms: i64, most: i64) -> i64 {
    let fits = |step: &&i64| length_ms / **step < most;
    STEPS_MS.iter().find(fits).copied().unwrap_or_else(|| length_ms / most + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_whole_ticks_and_at_most_five_steps() {
        for (most, top, ticks) in [
            (0, 1.0, 2),
            (1, 1.0, 2),
            (4, 4.0, 5),
            (7, 8.0, 5),
            (75, 80.0, 5),
            (4_200_000_000, 5e9, 5),
        ] {
            let scale = Scale::up(most);
            assert!((scale.to / top - 1.0).abs() < 0.3, "{most}: {}", scale.to);
            assert!(scale.ticks.len() <= ticks + 1, "{most}: {}", scale.ticks.len());
        }
    }

    #[test]
    fn time_is_divided_into_usual_steps() {
        assert_eq!(time_step_ms(240_000, 60), 5_000);
        assert_eq!(time_step_ms(3_600_000, 8), 600_000);
        assert!(i64::MAX / time_step_ms(i64::MAX, 60) <= 60);
    }

    #[test]
    fn every_value_has_a_place_in_the_drawing() {
        for log in [false, true] {
            let scale = Scale::across(0.001, 1e9, log, Vec::new());
            for value in [f64::MIN, 0.0, 0.001, 1.0, 1e300, f64::MAX] {
                let place = scale.place(value);
                assert!((LEFT..=WIDTH - RIGHT).contains(&place), "{value}: {place}");
            }
        }
    }
}
