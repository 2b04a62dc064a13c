//! Connections that no program accepted.

use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};

use super::{CLIENT, Observed, PORT, Scenario, Stage};
use crate::{
    actor::{accept, connect, listen, listen_for, send, talk, try_connect, wait_error},
    expect::{Expect, Incident},
    lab::Net,
    rawtcp::{ACK, RST, RawEnd, SYN, v4},
};

/// The first client port of the connections that fill the queue.
const FILLERS: u16 = 50_001;
/// Small enough to fill it, large enough that the kernel does not send SYN cookies.
const BACKLOG: u16 = 3;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::direct(
        "listener_closed",
        |net| Expect::one(aborted(net)),
        |stage| close_listener(stage, ""),
    ),
    // Unread data is not the cause: no program had accepted the connection.
    Scenario::direct(
        "listener_closed_unread_data",
        |net| Expect::one(aborted(net)),
        |stage| close_listener(stage, "SELECT 1;\n"),
    ),
    Scenario::direct(
        "near_miss_listener_closed_after_accept",
        |_| Expect::nothing(),
        close_empty_listener,
    ),
    Scenario::direct("listen_overflow", |net| Expect::one(refused(net)), abort_on_overflow),
    Scenario::direct(
        "listen_overflow_syn",
        |net| Expect::one(unanswered(net)),
        connect_to_full_queue,
    ),
    // The client is connected from its own view: the last ACK of its handshake was dropped, and so is its data.
    Scenario::direct(
        "listen_overflow_data",
        |net| Expect::one(unanswered(net)),
        send_to_full_queue,
    ),
    // The queue has room: the packets are lost before they reach it.
    Scenario::direct(
        "near_miss_queue_with_room",
        |net| Expect::one(lost(net)),
        connect_over_cut_path,
    ),
    Scenario::direct("syncookie_failed", |net| Expect::one(bad_cookie(net)), return_a_wrong_cookie),
    Scenario::direct("near_miss_syncookie_valid", |_| Expect::nothing(), return_the_cookie),
    Scenario::direct(
        "near_miss_ack_scan_of_listener",
        |net| Expect::one(unexplained(net)),
        scan_listener,
    ),
];

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

/// The server answers nothing.
fn unanswered(net: Net) -> Incident {
    Incident::new("listen_overflow", net.client(CLIENT), net.server(PORT))
        .confidence(&["correlated"])
        .victim("source", "ETIMEDOUT")
        .action("timeout")
        .origin("none")
        .first_fix("larger_backlog", "application")
}

fn lost(net: Net) -> Incident {
    Incident::new("retransmission_timeout", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ETIMEDOUT")
}

fn bad_cookie(net: Net) -> Incident {
    Incident::new("syncookie_failed", net.client(CLIENT), net.server(PORT))
        .confidence(&["correlated"])
        .origin("local_stack")
        .first_fix("larger_syn_queue", "application")
}

/// The server has sent no cookie.
fn unexplained(net: Net) -> Incident {
    Incident::new("unknown", net.client(CLIENT), net.server(PORT)).origin("local_stack")
}

fn close_listener(stage: &Stage<'_>, request: &str) -> Result<Observed> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    // This link has no delay: when `send` returns, the data is in the queue.
    send(&client, request)?;
    drop(listener);
    fails(stage, client)
}

fn fails(stage: &Stage<'_>, client: TcpStream) -> Result<Observed> {
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}

fn close_empty_listener(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    let server = accept(&listener)?;
    drop(listener);
    talk(&client, &server)?;
    stage.keep(client);
    stage.keep(server);
    Ok(Observed::default())
}

/// Fills the queue completely.
fn fill(stage: &Stage<'_>) -> Result<()> {
    for filler in 0..=BACKLOG {
        let from = stage.net.client(FILLERS + filler);
        stage.keep(connect(stage.lab.client()?, from, stage.net.server(PORT))?);
    }
    Ok(())
}

/// A connection whose handshake is not complete at the server: the client's ACK is lost on the path, and the
/// queue is filled in the meantime.
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
    fill(stage)?;
    server.nft("delete table inet lossy")?;
    Ok((listener, client))
}

fn abort_on_overflow(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.server()?.sysctl("net/ipv4/tcp_abort_on_overflow", 1)?;
    let (listener, client) = half_open(stage)?;
    send(&client, "SELECT 1;\n")?;
    let observed = fails(stage, client)?;
    stage.keep(listener);
    Ok(observed)
}

fn connect_to_full_queue(stage: &Stage<'_>) -> Result<Observed> {
    let (net, client) = (stage.net, stage.lab.client()?);
    client.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    stage.keep(listen_for(stage.lab.server()?, net.server(PORT), BACKLOG.into())?);
    fill(stage)?;
    let errno = try_connect(client, net.client(CLIENT), net.server(PORT))?.err();
    Ok(Observed::errno(errno.context("the connection was made despite the full queue")?))
}

fn send_to_full_queue(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    let (listener, client) = half_open(stage)?;
    send(&client, "SELECT 1;\n")?;
    let observed = fails(stage, client)?;
    stage.keep(listener);
    Ok(observed)
}

fn connect_over_cut_path(stage: &Stage<'_>) -> Result<Observed> {
    let (net, client) = (stage.net, stage.lab.client()?);
    client.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    stage.keep(listen_for(stage.lab.server()?, net.server(PORT), BACKLOG.into())?);
    stage.keep(connect(client, net.client(FILLERS), net.server(PORT))?);
    stage.cut_path()?;
    let errno = try_connect(client, net.client(CLIENT), net.server(PORT))?.err();
    Ok(Observed::errno(errno.context("the connection was made despite the cut path")?))
}

/// A client on a raw socket. Its host drops incoming packets for it, so that the kernel does not answer with RST.
fn raw_client(stage: &Stage<'_>) -> Result<RawEnd> {
    stage.lab.client()?.nft(&format!(
        "table inet quiet {{
            chain input {{ type filter hook input priority 0; tcp dport {CLIENT} drop; }}
        }}"
    ))?;
    RawEnd::new(stage.lab.client()?, stage.net.client(CLIENT))
}

/// As if another machine behind the same address had sent the cookie, or as if it were too old.
fn return_a_wrong_cookie(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    stage.lab.server()?.sysctl("net/ipv4/tcp_syncookies", 2)?;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    let (client, to) = (raw_client(stage)?, v4(net.server(PORT))?);
    client.send(to, 1, 0, SYN)?;
    let cookie = client.await_segment("the SYN|ACK", |it| it.has(SYN | ACK))?.seq;
    // The low bits of the cookie encode one of four MSS values.
    client.send(to, 2, cookie.wrapping_add(0x1001), ACK)?;
    client.await_segment("the RST", |it| it.has(RST))?;
    Ok(Observed::default())
}

fn return_the_cookie(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.server()?.sysctl("net/ipv4/tcp_syncookies", 2)?;
    let pair = stage.open_and_talk(stage.net)?;
    stage.keep(pair.client);
    stage.keep(pair.server);
    Ok(Observed::default())
}

fn scan_listener(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    stage.lab.server()?.sysctl("net/ipv4/tcp_syncookies", 0)?;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    let client = raw_client(stage)?;
    client.send(v4(net.server(PORT))?, 2, 0x1001, ACK)?;
    client.await_segment("the RST", |it| it.has(RST))?;
    Ok(Observed::default())
}
