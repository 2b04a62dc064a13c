//! Fixes in the program at one end of the connection.

use std::{
    io::Read,
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{By, FixTest, Outcome, Prediction, Round, StartRound, connections};
use crate::{
    actor::{
        abort_on_close, accept, connect, error_within, listen, receive_end, send, talk, wait_unread,
    },
    expect::Incident,
    lab::{Net, Topology},
    scenarios::{PORT, Pair, Stage},
};

/// A program does this some day, and the host does not show it before.
const IN_THE_PROGRAM: Prediction =
    Prediction::Not("the host does not show what a program will do with its sockets");
/// A connection without an error for this long after the peer's close has survived it.
const SURVIVES: Duration = Duration::from_secs(2);

pub const FIX_TESTS: &[FixTest] = &[
    direct("fix_close_unread_data", "drain_before_close", close_unread, |net, it| {
        incident("close_unread_data", net, it)
    }),
    direct("fix_linger_zero", "drop_linger_zero", linger, |net, it| {
        incident("linger_zero", net, it)
    }),
    direct("fix_idle_close_race", "pool_idle_below_limit", race, |net, it| {
        incident("idle_close_race", net, it)
    }),
    direct("fix_listener_closed", "accept_before_close", close_listener, |net, it| {
        incident("listener_closed", net, it)
    }),
];

const fn direct(
    name: &'static str,
    advice: &'static str,
    set_up: for<'a> fn(&'a Stage<'a>) -> Result<StartRound<'a>>,
    expect: fn(Net, &Round) -> Incident,
) -> FixTest {
    FixTest::new(name, Topology::Direct, expect, IN_THE_PROGRAM, By::Advice(advice), set_up)
}

fn incident(cause: &'static str, net: Net, round: &Round) -> Incident {
    Incident::new(cause, net.client(round.port), net.server(PORT))
}

/// The error of the client's socket after the server has closed, if there is one.
fn ends(stage: &Stage<'_>, client: TcpStream) -> Result<Outcome> {
    let errno = error_within(&client, SURVIVES)?;
    stage.keep(client);
    Ok(errno.into())
}

/// A request arrives just before the server closes.
fn close_unread<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let open = connections(stage, stage.net.server(PORT))?;
    Ok(Box::new(move |round| {
        let Pair { client, mut server } = open(round)?;
        let reads_first = round.advice.is_some();
        Ok(Box::new(move || {
            send(&client, "SELECT 2;\n")?;
            wait_unread(&server)?;
            if reads_first {
                server.shutdown(Shutdown::Write).context("shut down for writing")?;
                receive_end(&client)?;
                client.shutdown(Shutdown::Write).context("the client's end")?;
                let mut rest = Vec::new();
                server.read_to_end(&mut rest).context("read to the end")?;
            }
            drop(server);
            ends(stage, client)
        }))
    }))
}

fn linger<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let open = connections(stage, stage.net.server(PORT))?;
    Ok(Box::new(move |round| {
        let Pair { client, server } = open(round)?;
        if round.advice.is_none() {
            abort_on_close(&server)?;
        }
        Ok(Box::new(move || {
            drop(server);
            ends(stage, client)
        }))
    }))
}

/// The server's keep-alive timeout: longer than 1 s, after which a connection counts as idle.
const KEEP_ALIVE: Duration = Duration::from_millis(2_500);

/// The pool hands out a connection that the server has just closed, unless the pool has closed it before.
fn race<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let open = connections(stage, stage.net.server(PORT))?;
    Ok(Box::new(move |round| {
        let Pair { client, mut server } = open(round)?;
        let pool_closes_after = round.advice.as_ref().map(seconds).transpose()?;
        Ok(Box::new(move || {
            server.set_read_timeout(Some(KEEP_ALIVE)).context("set the keep-alive timeout")?;
            if let Some(idle) = pool_closes_after {
                ensure!(idle < KEEP_ALIVE, "the pool closes after {idle:?}, later than the server");
                thread::sleep(idle);
                client.shutdown(Shutdown::Write).context("the pool's close")?;
                receive_nothing(&mut server)?;
                drop(server);
                return ends(stage, client);
            }
            let waited = server.read(&mut [0; 64]);
            ensure!(waited.is_err(), "the connection was not idle: {waited:?}");
            drop(server);
            send(&client, "SELECT 2;\n")?;
            ends(stage, client)
        }))
    }))
}

fn receive_nothing(server: &mut TcpStream) -> Result<()> {
    let length = server.read(&mut [0; 64]).context("wait for the pool's close")?;
    ensure!(length == 0, "{length} bytes from a pool that closed");
    Ok(())
}

/// Parses `wanted` of a fix, such as `2 s`.
fn seconds(advice: &Value) -> Result<Duration> {
    let wanted = advice["wanted"].as_str().context("the fix has no `wanted`")?;
    let seconds = wanted.strip_suffix(" s").and_then(|it| it.parse().ok());
    Ok(Duration::from_secs(
        seconds.with_context(|| format!("invalid number of seconds {wanted:?}"))?,
    ))
}

/// Connections are in the listener's queue when it is closed.
fn close_listener<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let net = stage.net;
    Ok(Box::new(move |round| {
        let listener = listen(stage.lab.server()?, net.server(PORT))?;
        let client = connect(stage.lab.client()?, net.client(round.port), net.server(PORT))?;
        let accepts_first = round.advice.is_some();
        Ok(Box::new(move || {
            if accepts_first {
                let server = accept(&listener)?;
                drop(listener);
                talk(&client, &server)?;
                stage.keep(server);
            } else {
                drop(listener);
            }
            ends(stage, client)
        }))
    }))
}
