//! Resets that break no connection, and one that cannot be explained.

use anyhow::{Context, Result};

use super::{CLIENT, Observed, PORT, Pair, Scenario, Stage};
use crate::{
    actor::{abort_on_close, listen, try_connect, wait_error},
    expect::{Expect, Incident},
    lab::Net,
    rawtcp::{ACK, RST, RawEnd, SYN, v4},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario::direct(
        "connection_refused",
        |net| Expect::one(refused(net)),
        |stage| refuse(stage, stage.net),
    ),
    Scenario::direct(
        "connection_refused_v6",
        |net| Expect::one(refused(net.v6())),
        |stage| refuse(stage, stage.net.v6()),
    ),
    Scenario::direct(
        "handshake_rejected_syn_scan",
        |net| Expect::one(handshake(net)),
        scan_with_syn,
    ),
    Scenario::direct(
        "handshake_rejected_health_check",
        |net| Expect::one(handshake(net)).actors_see(&["ECONNRESET"]),
        check_health,
    ),
    Scenario::direct("unknown_ack_scan", |net| Expect::one(unexplained(net)), scan_with_ack),
    // One report for all of them.
    Scenario::direct(
        "unknown_ack_scan_with_payload",
        |net| Expect::one(unexplained(net)),
        scan_with_payload,
    ),
];

fn refused(net: Net) -> Incident {
    Incident::new("connection_refused", net.client(CLIENT), net.server(PORT))
        .victim("source", "ECONNREFUSED")
        .origin("local_stack")
}

fn handshake(net: Net) -> Incident {
    Incident::new("handshake_rejected", net.client(CLIENT), net.server(PORT))
}

/// One segment without payload does not show whether there was a connection before.
fn unexplained(net: Net) -> Incident {
    Incident::new("unknown", net.client(CLIENT), net.server(PORT))
        .or_cause("handshake_rejected")
        .origin("local_stack")
}

fn refuse(stage: &Stage<'_>, net: Net) -> Result<Observed> {
    let refused = try_connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?.err();
    Ok(Observed::errno(refused.context("the port has a listener")?))
}

/// The scanner's kernel has no socket for the SYN and answers the SYN|ACK with RST.
fn scan_with_syn(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    let server = RawEnd::new(stage.lab.server()?, net.server(PORT))?;
    let scanner = RawEnd::new(stage.lab.client()?, net.client(CLIENT))?;
    scanner.send(v4(net.server(PORT))?, 1, 0, SYN)?;
    scanner.await_segment("the SYN|ACK", |it| it.has(SYN | ACK))?;
    server.await_segment("the scanner's RST", |it| it.has(RST))?;
    Ok(Observed::default())
}

/// Connects to check that there is a listener, and aborts.
fn check_health(stage: &Stage<'_>) -> Result<Observed> {
    let Pair { client, server } = stage.open(stage.net)?;
    abort_on_close(&client)?;
    drop(client);
    let errno = wait_error(&server)?;
    stage.keep(server);
    Ok(Observed::errno(errno))
}

fn scan_with_ack(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let scanner = RawEnd::new(stage.lab.client()?, net.client(CLIENT))?;
    scanner.send(v4(net.server(PORT))?, 1, 1, ACK)?;
    scanner.await_segment("the RST", |it| it.has(RST))?;
    Ok(Observed::default())
}

fn scan_with_payload(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let scanner = RawEnd::new(stage.lab.client()?, net.client(CLIENT))?;
    for port in PORT..PORT + 5 {
        let to = v4(net.server(port))?;
        let number = u32::from(port) * 1_000_000;
        scanner.send_data(to, number, number.wrapping_mul(3), b"GET / HTTP/1.1\r\n")?;
        scanner.await_segment("the RST", |it| it.from == to && it.has(RST))?;
    }
    Ok(Observed::default())
}
