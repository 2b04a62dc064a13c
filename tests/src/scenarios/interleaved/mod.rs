//! Two hundred connections at once, broken for a dozen reasons in random order. The expected verdict of each tuple is
//! known in advance. No verdict may affect another connection, no incident may be reported twice, and no benign close
//! may be reported as a break.

mod kind;

use std::{
    env, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use kind::{Connection, Kind, Place, Turn};

use super::{Observed, Scenario, Stage, TracerUse};
use crate::{
    expect::Expect,
    guest::Need,
    lab::{Net, Topology},
};

pub const NAME: &str = "interleaved";

pub const SCENARIOS: &[Scenario] = &[Scenario::new(
    NAME,
    Topology::Routed,
    |net| Expect::in_any_order(plan(net).filter_map(|connection| connection.expected())),
    interleave,
)
.needs(&[Need::Ipvs, Need::Conntrack])
.tracer(TracerUse::Own)];

/// How many connections there are of each kind.
const KINDS: [(Kind, usize); 14] = [
    (Kind::CloseUnread, 20),
    (Kind::LingerZero, 20),
    (Kind::WriteAfterClose, 18),
    (Kind::KillOwner, 6),
    (Kind::CloseListener, 12),
    (Kind::Destroy, 12),
    (Kind::Reject, 18),
    (Kind::ExpireIpvs, 20),
    (Kind::DeleteConntrack, 14),
    (Kind::KeepaliveGone, 10),
    (Kind::UserTimeout, 10),
    (Kind::Refuse, 12),
    (Kind::HealthCheck, 12),
    (Kind::CloseOrderly, 16),
];

/// The variable with the seed of the random order.
const SEED: &str = "RSTTRACE_SEED";

fn plan(net: Net) -> impl Iterator<Item = Connection> {
    let kinds = KINDS.into_iter().flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
    kinds.enumerate().map(move |(index, kind)| Connection::new(kind, index, net))
}

fn seed() -> Result<u64> {
    match env::var(SEED) {
        Ok(text) => text.parse().with_context(|| format!("{SEED} is {text:?}, not a number")),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok(u64::from(now.subsec_micros()))
        }
    }
}

/// A small random number generator (xorshift64*).
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

fn interleave(stage: &Stage<'_>) -> Result<Observed> {
    let seed = seed()?;
    eprintln!("# interleaved: {SEED}={seed}");
    kind::prepare(stage)?;
    let place = Place::open(stage.net, stage.lab)?;
    // A generator of zero stays at zero.
    let dice = Dice(seed.wrapping_add(1).wrapping_mul(1_000_003) | 1);
    for connection in play(plan(stage.net).collect(), &place, dice)? {
        connection.sockets().for_each(|socket| stage.keep(socket));
    }
    place.listeners().for_each(|socket| stage.keep(socket));
    Ok(Observed::default())
}

/// Takes one step of a randomly chosen connection at a time, until all are done.
fn play(mut open: Vec<Connection>, place: &Place<'_>, mut dice: Dice) -> Result<Vec<Connection>> {
    let mut done = Vec::with_capacity(open.len());
    let mut waited = 0;
    while !open.is_empty() {
        let index = dice.roll(open.len());
        let connection = &mut open[index];
        let turn =
            connection.step(place).with_context(|| format!("the connection {connection}"))?;
        match turn {
            Turn::Went => waited = 0,
            Turn::Waits => {
                waited += 1;
                if waited > open.len() {
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Turn::Done => done.push(open.swap_remove(index)),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_are_two_hundred_connections_with_unique_tuples_and_a_dozen_causes() {
        let net = Net::new(1);
        assert_eq!(plan(net).count(), 200);
        let expected: Vec<_> = plan(net).filter_map(|it| it.expected()).collect();
        let tuples: BTreeSet<_> = expected.iter().map(|it| (it.source, it.destination)).collect();
        assert_eq!(tuples.len(), expected.len());
        let causes: BTreeSet<_> = expected.iter().map(|it| it.causes[0]).collect();
        assert!(causes.len() >= 12, "{causes:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_order() {
        let rolls = |seed| {
            let mut dice = Dice(seed);
            (0..50).map(|_| dice.roll(200)).collect::<Vec<_>>()
        };
        assert_eq!(rolls(7), rolls(7));
        assert_ne!(rolls(7), rolls(8));
    }
}
