//! End-to-end tests of the fixes that rsttrace proposes. A test makes the same connection before the fix, after the fix
//! and after the undo. In between, it compares everything that a fix may change.

mod application;
mod conntrack;
mod fault_test;
mod ipvs;
mod machine;
mod no_fix_test;
mod operator;
mod queue;
mod runner;
mod snapshot;
mod steps;
mod translated;

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{io::Errno, net::sockopt};
use serde_json::Value;

use crate::{
    actor::{accept, connect, listen, reaches, talk},
    expect::Incident,
    guest::Need,
    lab::{Net, Role, Topology},
    netns::Namespace,
    scenarios::{CLIENT, PORT, Pair, Stage},
};

pub use fault_test::{FAULT_TESTS, FaultTest};
pub use no_fix_test::NO_FIX_TEST;
pub use runner::{FixRunner, run};

/// The idle limit in seconds: long enough for `talk` on a busy guest.
const LIMIT: u64 = 3;
/// How long connections are idle: longer than the limit, and shorter than the limit that a fix sets (15 % more, whole
/// seconds, plus one).
const IDLE: Duration = Duration::from_millis(4_800);
/// Number of client ports of one round; only connections from these ports can break.
const PORTS: u16 = 100;

/// A cause and its fix.
pub struct FixTest {
    /// `fix_` and the cause; with several fixes for a cause, also which one.
    pub name: &'static str,
    pub topology: Topology,
    pub needs: &'static [Need],
    /// Runs alone, because it changes a setting that all namespaces share.
    pub alone: bool,
    /// The incident of a connection that breaks.
    pub expect: fn(Net, &Round) -> Incident,
    pub prediction: Prediction,
    pub by: By,
    /// Configures the host so that connections will break, without breaking one yet.
    pub set_up: for<'a> fn(&'a Stage<'a>) -> Result<StartRound<'a>>,
}

impl FixTest {
    const fn new(
        name: &'static str,
        topology: Topology,
        expect: fn(Net, &Round) -> Incident,
        prediction: Prediction,
        by: By,
        set_up: for<'a> fn(&'a Stage<'a>) -> Result<StartRound<'a>>,
    ) -> Self {
        Self { name, topology, needs: &[], alone: false, expect, prediction, by, set_up }
    }

    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// The cause that the incident of the first round must have.
    pub fn cause(&self) -> &'static str {
        (self.expect)(Net::new(0), &Round::new(0)).causes[0]
    }
}

/// What `rsttrace check` can predict before a connection breaks.
#[derive(Clone, Copy, Debug)]
pub enum Prediction {
    /// A finding for this namespace.
    In(Role),
    /// A finding for the initial namespace, whose values apply to all namespaces.
    OnHost,
    /// No finding, because the host does not show the cause; the reason.
    Not(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub enum By {
    /// `rsttrace fix --apply` must choose this fix, given only the incident.
    Fix(&'static str),
    /// As [`By::Fix`], but the fix does not help connections that are older; the plan must contain this word.
    FixOnlyNew(&'static str, &'static str),
    /// As [`By::FixOnlyNew`] with `--choose`.
    Chosen(&'static str, &'static str),
    /// The owner of the setting follows the incident's fix with this id.
    Advice(&'static str),
}

impl By {
    /// Whether rsttrace applies the fix, or the owner of the setting follows it.
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

/// One run of the connection.
#[derive(Clone, Debug)]
pub struct Round {
    /// The client's port; the round has [`PORTS`] ports from this one on.
    pub port: u16,
    /// The fix to follow, if any.
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

/// Starts a round: opens the connections, before anything can break.
pub type StartRound<'a> = Box<dyn Fn(&Round) -> Result<FinishRound<'a>> + 'a>;
/// Finishes a round.
pub type FinishRound<'a> = Box<dyn FnOnce() -> Result<Outcome> + 'a>;

/// How a connection ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// `None` if the connection works.
    pub errno: Option<Errno>,
    /// The broken connection's client port, where it is random which connection breaks.
    pub port: Option<u16>,
}

impl From<Option<Errno>> for Outcome {
    fn from(errno: Option<Errno>) -> Self {
        Self { errno, port: None }
    }
}

pub fn all() -> Vec<&'static FixTest> {
    [
        ipvs::FIX_TESTS,
        conntrack::FIX_TESTS,
        translated::FIX_TESTS,
        queue::FIX_TESTS,
        application::FIX_TESTS,
        machine::FIX_TESTS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Opens connections to `service`, which the server accepts, and on which both sides have sent data.
fn connections<'a>(
    stage: &'a Stage<'a>,
    service: SocketAddr,
) -> Result<impl Fn(&Round) -> Result<Pair> + 'a> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    Ok(move |round: &Round| {
        let client = connect(stage.lab.client()?, net.client(round.port), service)?;
        let server = accept(&listener)?;
        talk(&client, &server)?;
        Ok(Pair { client, server })
    })
}

/// One side writes once. Both sockets stay open until the end of the test.
fn exchange(stage: &Stage<'_>, writer: TcpStream, reader: TcpStream) -> Result<Outcome> {
    let errno = reaches(&writer, &reader)?;
    stage.keep(writer);
    stage.keep(reader);
    Ok(errno.into())
}

/// Drops retransmitted SYN-ACKs of a server on the node: after the loss of the entry, one would be answered with a RST,
/// which is another cause. Not dropped at the server, whose stack would see the failure.
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

/// Waits until a connection has been idle for longer than the limit.
fn be_idle(since: Instant) {
    thread::sleep((since + IDLE).saturating_duration_since(Instant::now()));
}

/// Sets the socket options in the commands of a fix, such as `setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1)`.
fn set_options(socket: &TcpStream, advice: &Value) -> Result<()> {
    let mut set = 0;
    for command in advice["commands"].as_array().context("the fix has no commands")? {
        let command = command.as_str().context("a command is not text")?;
        let Some(arguments) = command.strip_prefix("setsockopt(fd, ") else { continue };
        let words: Vec<&str> = arguments.trim_end_matches(')').split(", ").collect();
        let &[_, name, value] = words.as_slice() else {
            anyhow::bail!("invalid setsockopt {command:?}")
        };
        let value: u32 =
            value.parse().with_context(|| format!("invalid setsockopt {command:?}"))?;
        let time = Duration::from_secs(value.into());
        match name {
            "SO_KEEPALIVE" => sockopt::set_socket_keepalive(socket, value != 0),
            "TCP_KEEPIDLE" => sockopt::set_tcp_keepidle(socket, time),
            "TCP_KEEPINTVL" => sockopt::set_tcp_keepintvl(socket, time),
            "TCP_KEEPCNT" => sockopt::set_tcp_keepcnt(socket, value),
            _ => anyhow::bail!("an unknown option in {command:?}"),
        }
        .with_context(|| format!("set {command:?}"))?;
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
    fn every_fix_test_has_a_unique_name_that_begins_with_its_cause() {
        let all = all();
        assert_eq!(all.iter().map(|it| it.name).collect::<BTreeSet<_>>().len(), all.len());
        for fix_test in all {
            let cause = fix_test.cause();
            assert!(expect::family_of(cause).is_some(), "{}: {cause}", fix_test.name);
            assert!(fix_test.name.starts_with(&format!("fix_{cause}")), "{}", fix_test.name);
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
