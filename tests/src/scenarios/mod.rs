//! Scenarios that provoke every cause with real connections, and near misses that look like a cause but are not.

mod application;
mod article;
mod benign;
pub mod capacity;
mod closing;
pub mod conntrack;
mod interleaved;
pub mod ipvs;
mod ipvs_halfclose;
pub mod ipvs_lost;
mod ipvs_near_miss;
mod ipvs_service;
mod ipvs_unserved;
mod late;
mod listener;
pub mod nat;
mod owners;
mod policy;
mod remote;
mod sizing;
mod stateful;
mod timeout;
mod watching;

use std::{
    any::Any,
    cell::RefCell,
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::Result;
use rustix::io::Errno;

use crate::{
    actor::{accept, connect, listen, talk, wait_error},
    expect::Expect,
    guest::Need,
    lab::{Lab, Net, Topology},
};

/// The service's port, unless a scenario needs another one.
pub const PORT: u16 = 3306;
/// The client's port; fixed, so that the tuple is known in advance.
pub const CLIENT: u16 = 40_001;

pub use closing::own_socket;

pub struct Scenario {
    /// A cause of the contract, possibly followed by a variant.
    pub name: &'static str,
    pub topology: Topology,
    pub tracer: TracerUse,
    pub needs: &'static [Need],
    /// The expected incidents, written without knowledge of any output.
    pub expect: fn(Net) -> Expect,
    pub provoke: fn(&Stage<'_>) -> Result<Observed>,
}

impl Scenario {
    const fn new(
        name: &'static str,
        topology: Topology,
        expect: fn(Net) -> Expect,
        provoke: fn(&Stage<'_>) -> Result<Observed>,
    ) -> Self {
        Self { name, topology, tracer: TracerUse::Shared, needs: &[], expect, provoke }
    }

    /// A scenario with a client and a server on one link.
    const fn direct(
        name: &'static str,
        expect: fn(Net) -> Expect,
        provoke: fn(&Stage<'_>) -> Result<Observed>,
    ) -> Self {
        Self::new(name, Topology::Direct, expect, provoke)
    }

    /// Breaks hundreds of connections.
    pub fn is_large(&self) -> bool {
        self.name == interleaved::NAME
    }

    const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn tracer(self, tracer: TracerUse) -> Self {
        Self { tracer, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracerUse {
    /// Runs in parallel with other scenarios, under one tracer.
    Shared,
    /// Changes settings that all namespaces share; runs alone.
    Own,
    /// The tracer may not use kprobes, as on a kernel without them; runs alone.
    NoKprobes,
    /// Starts the tracer itself, during the scenario; runs alone.
    Late,
}

impl TracerUse {
    /// The tracer's extra arguments.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::NoKprobes => &["--no-kprobes"],
            Self::Shared | Self::Own | Self::Late => &[],
        }
    }
}

/// Something that must stay open until the verdict.
pub type Kept = Box<dyn Any + Send>;

/// The environment of a scenario.
pub struct Stage<'a> {
    pub net: Net,
    pub lab: &'a Lab,
    pub start_tracer: &'a dyn Fn() -> Result<()>,
    kept: RefCell<Vec<Kept>>,
}

impl<'a> Stage<'a> {
    pub fn new(net: Net, lab: &'a Lab, start_tracer: &'a dyn Fn() -> Result<()>) -> Self {
        Self { net, lab, start_tracer, kept: RefCell::default() }
    }

    /// Keeps a socket open until the verdict, because closing it would be another event.
    pub fn keep(&self, socket: impl Into<OwnedFd>) {
        self.keep_alive(socket.into());
    }

    /// As [`Stage::keep`], for any other value.
    pub fn keep_alive(&self, thing: impl Any + Send) {
        self.kept.borrow_mut().push(Box::new(thing));
    }

    /// From now on, the server drops every TCP packet that arrives, without an answer.
    pub fn cut_path(&self) -> Result<()> {
        self.lab.server()?.nft(
            "table inet cut {
                chain input { type filter hook input priority 0; meta l4proto tcp drop; }
            }",
        )
    }

    /// Undoes [`Stage::cut_path`].
    pub fn restore_path(&self) -> Result<()> {
        self.lab.server()?.nft("delete table inet cut")
    }

    /// A connection directly to the server, without data.
    pub fn open(&self, net: Net) -> Result<Pair> {
        let listener = listen(self.lab.server()?, net.server(PORT))?;
        let client = connect(self.lab.client()?, net.client(CLIENT), net.server(PORT))?;
        let server = accept(&listener)?;
        self.keep(listener);
        Ok(Pair { client, server })
    }

    /// A connection directly to the server, after a query and its answer.
    pub fn open_and_talk(&self, net: Net) -> Result<Pair> {
        let pair = self.open(net)?;
        talk(&pair.client, &pair.server)?;
        Ok(pair)
    }

    pub fn into_kept(self) -> Vec<Kept> {
        self.kept.into_inner()
    }
}

/// The two sockets of a connection.
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Pair {
    /// Waits for the error of the client's socket; keeps both sockets open.
    fn client_fails(self, stage: &Stage<'_>) -> Result<Observed> {
        let errno = wait_error(&self.client)?;
        stage.keep(self.client);
        stage.keep(self.server);
        Ok(Observed::errno(errno))
    }
}

/// What the scenario's own programs measured.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub errno: Option<Errno>,
    /// How long the connection was idle when its next packet was sent.
    pub idle: Option<Duration>,
    /// The back end that a scheduler chose.
    pub nat: Option<SocketAddr>,
    /// The end (`source`, `destination`) and its process.
    pub pids: Vec<(&'static str, u32)>,
    /// The client of the broken connection, where it is random which one breaks.
    pub source: Option<SocketAddr>,
}

impl Observed {
    pub fn errno(errno: Errno) -> Self {
        Self { errno: Some(errno), ..Self::default() }
    }
}

pub fn all() -> Vec<&'static Scenario> {
    [
        ipvs::SCENARIOS,
        ipvs_halfclose::SCENARIOS,
        ipvs_near_miss::SCENARIOS,
        ipvs_service::SCENARIOS,
        ipvs_lost::SCENARIOS,
        ipvs_unserved::SCENARIOS,
        conntrack::SCENARIOS,
        nat::SCENARIOS,
        capacity::SCENARIOS,
        timeout::SCENARIOS,
        policy::SCENARIOS,
        stateful::SCENARIOS,
        application::SCENARIOS,
        closing::SCENARIOS,
        listener::SCENARIOS,
        remote::SCENARIOS,
        benign::SCENARIOS,
        interleaved::SCENARIOS,
        late::SCENARIOS,
        owners::SCENARIOS,
        sizing::SCENARIOS,
        watching::SCENARIOS,
        article::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .collect()
}
