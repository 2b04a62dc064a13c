//! IPVS entries of half-closed connections, whose timeouts are much shorter than those of open ones.

use std::{net::Shutdown, time::Duration};

use anyhow::{Context, Result};

use super::{
    CLIENT, Observed, PORT, Scenario, Stage,
    ipvs::{Connection, NEVER, TIMEOUT, has_entry, ipvs, wait_expired},
};
use crate::{
    actor::{receive, receive_end, send, wait_error, wait_proc_within},
    expect::{Expect, Incident},
    lab::{Net, Role},
};

/// IPVS's timeout for CLOSE_WAIT in seconds, which cannot be configured (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts).
const CLOSE_WAIT: u64 = 60;

pub const SCENARIOS: &[Scenario] = &[
    ipvs("ipvs_halfclose_expired", |net| Expect::one(in_fin_wait(net)), server_half_closes),
    // Takes a minute, in parallel with the other scenarios.
    ipvs(
        "ipvs_halfclose_expired_close_wait",
        |net| Expect::one(in_close_wait(net)),
        client_half_closes,
    ),
    // Takes a minute too. With the entry alive, the closed socket would have reset the answer as well.
    ipvs(
        "data_after_close_ipvs_entry_expired",
        |net| Expect::one(client_had_closed(net)),
        client_closes,
    ),
    ipvs("near_miss_ipvs_halfclose_in_time", |_| Expect::nothing(), half_close_and_finish),
];

/// A socket that has seen the peer's FIN fails with EPIPE.
fn expired(net: Net, victim: &'static str, timeout: u64) -> Incident {
    Incident::new("ipvs_halfclose_expired", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim(victim, "EPIPE")
        .origin("local_stack")
        .idle()
        .ipvs_timeout(timeout)
}

fn in_fin_wait(net: Net) -> Incident {
    expired(net, "source", TIMEOUT).evidence("FIN_WAIT").netns(&[Role::Node, Role::Client])
}

/// The server's answer leaves the node with the server's own address, and the client's host has no such connection.
fn in_close_wait(net: Net) -> Incident {
    expired(net, "destination", CLOSE_WAIT).evidence("CLOSE_WAIT").netns(&[
        Role::Client,
        Role::Node,
        Role::Server,
    ])
}

fn client_had_closed(net: Net) -> Incident {
    Incident::new("data_after_close", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("destination", "EPIPE")
        .evidence("closed the connection")
        .first_fix("caller_waits_longer", "application")
}

/// The client gives up while the server still works.
fn client_closes(stage: &Stage<'_>) -> Result<Observed> {
    let Connection { listener, client, server, .. } = Connection::tracked(stage, NEVER)?;
    drop(client);
    receive_end(&server)?;
    wait_close_wait_expired(stage)?;
    send(&server, "1 row\n")?;
    let errno = wait_error(&server)?;
    stage.keep(listener);
    stage.keep(server);
    Ok(Observed::errno(errno))
}

fn wait_close_wait_expired(stage: &Stage<'_>) -> Result<()> {
    let limit = Duration::from_secs(CLOSE_WAIT * 2);
    let what = "the end of the IPVS entry in CLOSE_WAIT";
    wait_proc_within(limit, stage.lab.node()?, "ip_vs_conn", what, |table| {
        !has_entry(table, CLIENT)
    })
}

/// The server shuts its side down; the client goes on sending.
fn server_half_closes(stage: &Stage<'_>) -> Result<Observed> {
    let mut connection = Connection::tracked(stage, NEVER)?;
    stage.lab.node()?.run(&format!("ipvsadm --set 0 {TIMEOUT} 0"))?;
    connection.server.shutdown(Shutdown::Write).context("shut the server's side down")?;
    receive_end(&connection.client)?;
    connection.is_idle_now();
    wait_expired(stage, CLIENT)?;
    connection.client_writes(stage)
}

/// The client has sent its whole request; the answer takes longer than a minute.
fn client_half_closes(stage: &Stage<'_>) -> Result<Observed> {
    let mut connection = Connection::tracked(stage, NEVER)?;
    connection.client.shutdown(Shutdown::Write).context("shut the client's side down")?;
    receive_end(&connection.server)?;
    connection.is_idle_now();
    wait_close_wait_expired(stage)?;
    let idle = connection.idle_since.elapsed();
    send(&connection.server, "1 row\n")?;
    let errno = wait_error(&connection.server)?;
    connection.keep(stage);
    Ok(Observed { idle: Some(idle), ..Observed::errno(errno) })
}

fn half_close_and_finish(stage: &Stage<'_>) -> Result<Observed> {
    let connection = Connection::tracked(stage, NEVER)?;
    connection.client.shutdown(Shutdown::Write).context("shut the client's side down")?;
    receive_end(&connection.server)?;
    send(&connection.server, "1 row\n")?;
    receive(&connection.client, "1 row\n")?;
    connection.server.shutdown(Shutdown::Write).context("shut the server's side down")?;
    receive_end(&connection.client)?;
    connection.keep(stage);
    Ok(Observed::default())
}
