//! Proof that what rsttrace prescribes heals. The same connection is made on the host as it was found, as the fix leaves
//! it, and as the undo leaves it; in between, everything that a fix may touch is compared.

mod application;
mod conntrack;
mod ipvs;
mod machine;
mod operator;
mod ordeal;
mod queue;
mod snapshot;
mod steps;
mod translated;
mod unhealed;
mod ward;

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{io::Errno, net::sockopt};
use serde_json::Value;

use crate::{
    actor::reaches,
    expect::Incident,
    guest::Need,
    lab::{Net, Role, Topology},
    netns::Namespace,
    scenarios::{CLIENT, Stage},
};

pub use ordeal::{ORDEALS, Ordeal, run as undergo};
pub use unhealed::UNHEALED;
pub use ward::{Ward, run};

/// An idle limit, seconds: long enough for a conversation on a guest that has other work.
const LIMIT: u64 = 3;
/// How long connections are idle: beyond the limit, and below what a fix makes of it (with 15 % to spare, whole
/// seconds, one more).
const IDLE: Duration = Duration::from_millis(4_800);
/// Ports of one round; only connections from these can break.
const PORTS: u16 = 100;

/// A cause, and what heals it.
pub struct Healing {
    /// `heal_` and the cause; where there are several ways to heal it, which one.
    pub name: &'static str,
    pub topology: Topology,
    pub needs: &'static [Need],
    /// Changes what all namespaces share.
    pub alone: bool,
    /// What is printed of a connection that breaks.
    pub expect: fn(Net, &Round) -> Incident,
    pub foreseen: Foreseen,
    pub by: By,
    /// Makes the host such that connections break, without breaking one.
    pub lay_out: for<'a> fn(&'a Stage<'a>) -> Result<Scene<'a>>,
}

impl Healing {
    const fn new(
        name: &'static str,
        topology: Topology,
        expect: fn(Net, &Round) -> Incident,
        foreseen: Foreseen,
        by: By,
        lay_out: for<'a> fn(&'a Stage<'a>) -> Result<Scene<'a>>,
    ) -> Self {
        Self { name, topology, needs: &[], alone: false, expect, foreseen, by, lay_out }
    }

    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// The cause that the first round must be told of.
    pub fn cause(&self) -> &'static str {
        (self.expect)(Net::new(0), &Round::new(0)).causes[0]
    }
}

/// What `rsttrace check` can know before anything breaks.
#[derive(Clone, Copy, Debug)]
pub enum Foreseen {
    /// It names this namespace.
    In(Role),
    /// It names the initial namespace, whose values hold for all.
    OnHost,
    /// Nothing on the host shows it: why.
    Not(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub enum By {
    /// `rsttrace fix --apply` with the incident alone must choose this one.
    Fix(&'static str),
    /// The same, and what had begun before is not rescued; the plan says so with this word.
    FixOnlyNew(&'static str, &'static str),
    /// As [`By::FixOnlyNew`] with `--choose`.
    Chosen(&'static str, &'static str),
    /// Whoever owns it does what the incident's fix with this id says.
    Advice(&'static str),
}

impl By {
    /// Whether rsttrace does it, or somebody who was told.
    pub fn how(self) -> &'static str {
        match self {
            Self::Fix(_) | Self::FixOnlyNew(..) | Self::Chosen(..) => "applied",
            Self::Advice(_) => "followed",
        }
    }

    pub fn id(self) -> &'static str {
        match self {
            Self::Fix(id) | Self::FixOnlyNew(id, _) | Self::Chosen(id, _) | Self::Advice(id) => id,
        }
    }
}

/// Once through the scenario.
#[derive(Clone, Debug)]
pub struct Round {
    /// The client's port; the [`PORTS`] from here on are the round's.
    pub port: u16,
    /// The fix to follow.
    pub advice: Option<Value>,
}

impl Round {
    pub fn new(number: u16) -> Self {
        Self { port: CLIENT + number * PORTS, advice: None }
    }

    pub fn following(self, advice: Value) -> Self {
        Self { advice: Some(advice), ..self }
    }

    fn owns(&self, port: u16) -> bool {
        (self.port..self.port + PORTS).contains(&port)
    }
}

/// Begins a round: what is there before anything can break.
pub type Scene<'a> = Box<dyn Fn(&Round) -> Result<Begun<'a>> + 'a>;
/// The rest of it.
pub type Begun<'a> = Box<dyn FnOnce() -> Result<Ended> + 'a>;

/// How a connection ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ended {
    /// `None`: it works.
    pub errno: Option<Errno>,
    /// Where chance decides which connection it was.
    pub port: Option<u16>,
}

impl From<Option<Errno>> for Ended {
    fn from(errno: Option<Errno>) -> Self {
        Self { errno, port: None }
    }
}

pub fn all() -> Vec<&'static Healing> {
    [
        ipvs::HEALINGS,
        conntrack::HEALINGS,
        translated::HEALINGS,
        queue::HEALINGS,
        application::HEALINGS,
        machine::HEALINGS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// One side writes, once; both sockets stay open until everything is over.
fn exchange(stage: &Stage<'_>, writer: TcpStream, reader: TcpStream) -> Result<Ended> {
    let errno = reaches(&writer, &reader)?;
    stage.keep(writer);
    stage.keep(reader);
    Ok(errno.into())
}

/// Lets no SYN-ACK of a server through twice: one that is sent again after the loss of its entry would be answered with
/// a reset, another story than the one that is told here. Not at the server, which would notice.
fn synack_once(node: &Namespace) -> Result<()> {
    node.nft(
        "table inet once {
            set greeted { type inet_service; flags dynamic; size 4096; }
            chain early {
                type filter hook prerouting priority -310;
                iifname != client tcp flags & (syn | ack) == syn | ack tcp dport @greeted drop
                iifname != client tcp flags & (syn | ack) == syn | ack add @greeted { tcp dport }
            }
        }",
    )
}

/// Lets a connection be idle beyond the limit.
fn be_idle(since: Instant) {
    thread::sleep((since + IDLE).saturating_duration_since(Instant::now()));
}

/// Does to a socket what the commands of a fix say: `setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1)`.
fn set_options(socket: &TcpStream, advice: &Value) -> Result<()> {
    let mut set = 0;
    for command in advice["commands"].as_array().context("the fix has no commands")? {
        let command = command.as_str().context("a command is not text")?;
        let Some(arguments) = command.strip_prefix("setsockopt(fd, ") else { continue };
        let words: Vec<&str> = arguments.trim_end_matches(')').split(", ").collect();
        let &[_, name, value] = words.as_slice() else { anyhow::bail!("a strange {command:?}") };
        let value: u32 = value.parse().with_context(|| format!("a strange {command:?}"))?;
        let time = Duration::from_secs(value.into());
        match name {
            "SO_KEEPALIVE" => sockopt::set_socket_keepalive(socket, value != 0),
            "TCP_KEEPIDLE" => sockopt::set_tcp_keepidle(socket, time),
            "TCP_KEEPINTVL" => sockopt::set_tcp_keepintvl(socket, time),
            "TCP_KEEPCNT" => sockopt::set_tcp_keepcnt(socket, value),
            _ => anyhow::bail!("an unknown option in {command:?}"),
        }
        .with_context(|| format!("do {command:?}"))?;
        set += 1;
    }
    ensure!(set > 0, "the fix sets no socket option");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::expect;

    #[test]
    fn every_healing_has_a_name_of_its_own_that_begins_with_its_cause() {
        let all = all();
        assert_eq!(all.iter().map(|it| it.name).collect::<BTreeSet<_>>().len(), all.len());
        for healing in all {
            let cause = healing.cause();
            assert!(expect::family_of(cause).is_some(), "{}: {cause}", healing.name);
            assert!(healing.name.starts_with(&format!("heal_{cause}")), "{}", healing.name);
        }
    }

    #[test]
    fn rounds_do_not_share_ports() {
        let rounds = [0, 1, 2, 3].map(Round::new);
        for round in &rounds {
            assert_eq!(rounds.iter().filter(|other| other.owns(round.port + PORTS - 1)).count(), 1);
        }
    }
}
