//! Connections that no program ever accepted.

use std::net::{TcpListener, TcpStream};

use anyhow::Result;

use super::{CLIENT, PORT, Scenario, Stage, Witness};
use crate::actor::{accept, connect, listen, listen_for, send, talk, wait_error};
use crate::expect::{Expect, Incident};
use crate::lab::{Net, Topology};

/// The first of the ports from which the queue is filled.
const FILLERS: u16 = 50_001;
/// Small enough to be filled, large enough that the kernel needs no SYN cookies for it.
const BACKLOG: u16 = 3;

pub const SCENARIOS: &[Scenario] = &[
    direct("listener_closed", |net| Expect::one(aborted(net)), |stage| close_listener(stage, "")),
    // What lies unread is not why: nobody was there to read it.
    direct(
        "listener_closed_unread_data",
        |net| Expect::one(aborted(net)),
        |stage| close_listener(stage, "SELECT 1;\n"),
    ),
    direct("near_miss_listener_closed_after_accept", |_| Expect::nothing(), close_empty_listener),
    direct("listen_overflow", |net| Expect::one(refused(net)), abort_on_overflow),
];

const fn direct(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Witness>,
) -> Scenario {
    Scenario::new(name, Topology::Direct, expect, provoke)
}

fn aborted(net: Net) -> Incident {
    Incident::new("listener_closed", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

fn refused(net: Net) -> Incident {
    Incident::new("listen_overflow", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .first_fix("larger_backlog", "application")
}

fn close_listener(stage: &Stage<'_>, request: &str) -> Result<Witness> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    // Nothing is delayed on this link: with the return of `send` the data lies in the queue.
    send(&client, request)?;
    drop(listener);
    fails(stage, client)
}

fn fails(stage: &Stage<'_>, client: TcpStream) -> Result<Witness> {
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Witness::errno(errno))
}

fn close_empty_listener(stage: &Stage<'_>) -> Result<Witness> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    let server = accept(&listener)?;
    drop(listener);
    talk(&client, &server)?;
    stage.keep(client);
    stage.keep(server);
    Ok(Witness::default())
}

/// A connection whose handshake the server has not seen finished: its acknowledgement is lost on the way, and the
/// queue fills up meanwhile.
fn half_open(stage: &Stage<'_>) -> Result<(TcpListener, TcpStream)> {
    let (net, server) = (stage.net, stage.lab.server()?);
    let listener = listen_for(server, net.server(PORT), BACKLOG.into())?;
    server.nft(&format!(
        "table inet lossy {{
            chain input {{
                type filter hook input priority 0;
                tcp sport {CLIENT} tcp flags & (syn | ack) == ack drop;
            }}
        }}"
    ))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    for filler in 0..=BACKLOG {
        stage.keep(connect(stage.lab.client()?, net.client(FILLERS + filler), net.server(PORT))?);
    }
    server.nft("delete table inet lossy")?;
    Ok((listener, client))
}

fn abort_on_overflow(stage: &Stage<'_>) -> Result<Witness> {
    stage.lab.server()?.sysctl("net/ipv4/tcp_abort_on_overflow", 1)?;
    let (listener, client) = half_open(stage)?;
    send(&client, "SELECT 1;\n")?;
    let witness = fails(stage, client)?;
    stage.keep(listener);
    Ok(witness)
}
