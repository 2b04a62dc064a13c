//! Accept queues that are too short for a burst of clients.

use std::{
    cell::{Cell, RefCell},
    net::TcpListener,
    rc::Rc,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{By, FixTest, Outcome, Prediction, Round, StartRound};
use crate::{
    actor::{accept, connect, listen_for, talk, try_connect},
    expect::Incident,
    lab::{Net, Role, Topology},
    scenarios::{PORT, Stage},
};

/// Small enough to fill it, large enough that the kernel does not send SYN cookies.
const QUEUE: u16 = 3;

pub const FIX_TESTS: &[FixTest] = &[
    // The plan must say that the listener has to be restarted.
    FixTest::new(
        "fix_listen_overflow",
        Topology::Direct,
        overflow,
        Prediction::In(Role::Server),
        By::FixOnlyNew("raise_somaxconn", "restart"),
        small_queue,
    ),
    FixTest::new(
        "fix_listen_overflow_backlog",
        Topology::Direct,
        overflow,
        Prediction::In(Role::Server),
        By::Advice("larger_backlog"),
        small_backlog,
    ),
];

fn overflow(net: Net, round: &Round) -> Incident {
    Incident::new("listen_overflow", net.client(round.port), net.server(PORT)).action("timeout")
}

/// somaxconn limits the requested backlog of 128.
fn small_queue<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    stage.lab.server()?.sysctl("net/core/somaxconn", QUEUE)?;
    listening(stage, |_| Ok(128))
}

/// The program requests a short queue.
fn small_backlog<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    listening(stage, |round| round.advice.as_ref().map_or_else(|| Ok(QUEUE.into()), backlog))
}

/// `listen(fd, 256)`
fn backlog(advice: &Value) -> Result<i32> {
    let commands = advice["commands"].as_array().context("the fix has no commands")?;
    let listen = commands.iter().find_map(|it| it.as_str()?.strip_prefix("listen(fd, "));
    let backlog = listen.and_then(|it| it.strip_suffix(')')?.parse().ok());
    backlog.with_context(|| format!("no listen() in {commands:?}"))
}

/// Every round restarts the listener, connects the clients that fill its queue, and then one more.
fn listening<'a>(
    stage: &'a Stage<'a>,
    backlog: fn(&Round) -> Result<i32>,
) -> Result<StartRound<'a>> {
    let (net, at) = (stage.net, stage.lab.client()?);
    at.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    let start = move |round: &Round| -> Result<Running> {
        let listener = listen_for(stage.lab.server()?, net.server(PORT), backlog(round)?)?;
        Ok(Running { listener, queued: Cell::new(0) })
    };
    let running = RefCell::new(Some(Rc::new(start(&Round::new(0))?)));
    Ok(Box::new(move |round| {
        if let Some(old) = running.take() {
            // A listener that is closed resets the connections in its queue.
            old.empty(stage)?;
        }
        let (port, new) = (round.port, Rc::new(start(round)?));
        *running.borrow_mut() = Some(new.clone());
        Ok(Box::new(move || {
            for filler in 1..=QUEUE + 1 {
                stage.keep(connect(at, net.client(port + filler), net.server(PORT))?);
                new.queued.set(new.queued.get() + 1);
            }
            let client = match try_connect(at, net.client(port), net.server(PORT))? {
                Err(errno) => return Ok(Outcome::from(Some(errno))),
                Ok(client) => client,
            };
            new.empty(stage)?;
            let server = accept(&new.listener)?;
            talk(&client, &server)?;
            stage.keep(client);
            stage.keep(server);
            Ok(Outcome::default())
        }))
    }))
}

struct Running {
    listener: TcpListener,
    queued: Cell<usize>,
}

impl Running {
    /// Accepts all queued connections.
    fn empty(&self, stage: &Stage<'_>) -> Result<()> {
        for _ in 0..self.queued.take() {
            stage.keep(accept(&self.listener)?);
        }
        Ok(())
    }
}
