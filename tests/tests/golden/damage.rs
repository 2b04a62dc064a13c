//! Damaged captures: the replay of any file must end without a panic.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
};

use anyhow::{Result, ensure};
use rsttrace::render::table::{Table, TableOptions};
use rsttrace_core::{capture::Reader, correlator::Correlator, incident::Incident};
use rsttrace_schema::json;

use super::captures;

/// Damaged versions of each capture.
const ROUNDS: u64 = 8;

/// A small random number generator (xorshift64*), with the same results on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % sides.max(1)
    }
}

/// Makes one change, as a broken disk, an editor or an attacker could.
fn damage(lines: &mut Vec<Vec<u8>>, dice: &mut Dice) {
    let (one, other) = (dice.roll(lines.len()), dice.roll(lines.len()));
    match dice.roll(6) {
        0 => {
            lines.remove(one);
        }
        1 => lines.swap(one, other),
        2 => lines.insert(other, lines[one].clone()),
        3 => {
            let at = dice.roll(lines[one].len());
            lines[one].truncate(at);
        }
        4 => {
            let at = dice.roll(lines[one].len());
            if let Some(byte) = lines[one].get_mut(at) {
                *byte ^= 1 << dice.roll(8);
            }
        }
        // After the other half of the changes the line is still an event, with a wrong value.
        _ => replace_number(&mut lines[one], dice),
    }
    if lines.is_empty() {
        lines.push(Vec::new());
    }
}

/// Replaces a random number with an extreme value.
fn replace_number(line: &mut Vec<u8>, dice: &mut Dice) {
    const EXTREMES: [&str; 12] = [
        "0",
        "1",
        "255",
        "65535",
        "2147483648",
        "4294967295",
        "9223372036854775807",
        "18446744073709551615",
        "-1",
        "-9223372036854775808",
        "1e308",
        "-0.0",
    ];
    let starts: Vec<usize> = (1..line.len())
        .filter(|&at| line[at].is_ascii_digit() && b":[,".contains(&line[at - 1]))
        .collect();
    let Some(&start) = starts.get(dice.roll(starts.len())) else {
        return;
    };
    let digits = line[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let extreme = EXTREMES[dice.roll(EXTREMES.len())];
    line.splice(start..start + digits, extreme.bytes());
}

/// Replays and prints in every format.
fn replay(capture: &[u8]) {
    let Ok(reader) = Reader::new(capture) else {
        return;
    };
    let mut correlator = Correlator::new();
    let mut table = Table::new(TableOptions { color: true, width: 80, wide: true });
    let mut print = |incidents: Vec<Incident>, now| {
        for incident in &incidents {
            json::pretty(&json::incident(incident));
            table.incident(incident, now);
        }
        table.tick(now);
    };
    for event in reader.flatten() {
        let now = event.ts;
        print(correlator.feed(event), now);
    }
    print(correlator.finish(), u64::MAX);
    table.flush();
}

#[test]
fn no_damage_to_a_capture_makes_its_replay_panic() -> Result<()> {
    let mut panicking = Vec::new();
    for capture in captures::all()? {
        let whole = fs::read(&capture)?;
        let lines: Vec<Vec<u8>> =
            whole.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let name = captures::name(&capture);
        for round in 1..=ROUNDS {
            let mut dice = Dice(name.bytes().fold(round, |hash, byte| {
                hash.wrapping_mul(0x0000_0100_0000_01b3) ^ u64::from(byte)
            }));
            let (header, events) = lines.split_at(1);
            let mut events = events.to_vec();
            for _ in 0..=dice.roll(6) {
                damage(&mut events, &mut dice);
            }
            let damaged = [header.concat(), events.concat()].concat();
            if catch_unwind(AssertUnwindSafe(|| replay(&damaged))).is_err() {
                let kept =
                    std::env::temp_dir().join(format!("{}-{round}.cap", name.replace('/', "-")));
                fs::write(&kept, &damaged)?;
                panicking.push(kept);
            }
        }
    }
    ensure!(panicking.is_empty(), "the replay of these panics: {panicking:#?}");
    Ok(())
}
