//! The path or the peer is gone, and a kernel timer ends the connection.

use std::{io::Write, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::{CLIENT, Observed, PORT, Scenario, Stage};
use crate::{
    actor::{keepalive, listen, send, try_connect, user_timeout, wait_error, wait_proc},
    expect::{Expect, Incident},
    lab::{Net, Topology},
};

const SECOND: Duration = Duration::from_secs(1);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::direct(
        "keepalive_exhausted",
        |net| Expect::one(keepalive_exhausted(net)),
        exhaust_keepalive,
    ),
    // The RST that answers the server is a consequence of the first error.
    Scenario::direct(
        "keepalive_exhausted_other_end",
        |net| Expect::one(keepalive_exhausted(net).or_both_victims()),
        exhaust_keepalive_then_server_speaks,
    ),
    Scenario::direct(
        "retransmission_timeout",
        |net| Expect::one(timed_out("retransmission_timeout", net).keepalive(false)),
        exhaust_retransmissions,
    ),
    Scenario::direct(
        "retransmission_timeout_syn",
        |net| Expect::one(timed_out("retransmission_timeout", net)),
        exhaust_syns,
    ),
    Scenario::direct(
        "retransmission_timeout_zero_window",
        |net| Expect::one(timed_out("retransmission_timeout", net).evidence("zero-window probes")),
        exhaust_window_probes,
    ),
    // The node has lost its route and sends ICMP errors; the socket finally fails with that error.
    Scenario::new(
        "retransmission_timeout_unreachable",
        Topology::Routed,
        |net| Expect::one(unreachable(net)),
        lose_the_route,
    ),
    Scenario::direct(
        "user_timeout",
        |net| Expect::one(timed_out("user_timeout", net)),
        exceed_user_timeout,
    ),
];

fn timed_out(cause: &'static str, net: Net) -> Incident {
    Incident::new(cause, net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ETIMEDOUT")
        .origin("none")
}

fn unreachable(net: Net) -> Incident {
    timed_out("retransmission_timeout", net)
        .errno(&["EHOSTUNREACH"])
        .action("timeout")
        .evidence("EHOSTUNREACH")
}

/// When the keepalive probes are exhausted, the kernel sends a RST, which does not arrive.
fn keepalive_exhausted(net: Net) -> Incident {
    timed_out("keepalive_exhausted", net).origin("local_socket").keepalive(true)
}

fn exhaust_keepalive(stage: &Stage<'_>) -> Result<Observed> {
    let pair = stage.open_and_talk(stage.net)?;
    keepalive(&pair.client, SECOND, SECOND, 2)?;
    stage.cut_path()?;
    pair.client_fails(stage)
}

fn exhaust_keepalive_then_server_speaks(stage: &Stage<'_>) -> Result<Observed> {
    let pair = stage.open_and_talk(stage.net)?;
    keepalive(&pair.client, SECOND, SECOND, 2)?;
    stage.cut_path()?;
    let errno = wait_error(&pair.client)?;
    stage.restore_path()?;
    send(&pair.server, "you have been idle\n")?;
    let other = wait_error(&pair.server)?;
    ensure!(other == Errno::CONNRESET, "the server's error is {other}");
    stage.keep(pair.client);
    stage.keep(pair.server);
    Ok(Observed::errno(errno))
}

fn exhaust_retransmissions(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    let pair = stage.open_and_talk(stage.net)?;
    stage.cut_path()?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

/// The server reads nothing, so its window closes. Then the client's window probes are not answered.
fn exhaust_window_probes(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    stage.lab.server()?.sysctl("net/ipv4/tcp_rmem", "4096 8192 16384")?;
    let pair = stage.open_and_talk(stage.net)?;
    pair.client.set_nonblocking(true).context("make the client's socket non-blocking")?;
    while (&pair.client).write(&[b'x'; 4096]).is_ok() {}
    pair.client.set_nonblocking(false).context("make the client's socket blocking")?;
    // The sixth column is `timer:when`; timer 4 sends window probes.
    wait_proc(stage.lab.client()?, "tcp", "the first window probe", |table| {
        table.lines().any(|line| {
            line.split_whitespace().nth(5).is_some_and(|timer| timer.starts_with("04:"))
        })
    })?;
    stage.cut_path()?;
    pair.client_fails(stage)
}

fn lose_the_route(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    let pair = stage.open_and_talk(stage.net)?;
    let server = stage.net.server(PORT).ip();
    stage.lab.node()?.run(&format!("ip route add unreachable {server}/32"))?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn exhaust_syns(stage: &Stage<'_>) -> Result<Observed> {
    let (net, client) = (stage.net, stage.lab.client()?);
    client.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    stage.cut_path()?;
    let errno = try_connect(client, net.client(CLIENT), net.server(PORT))?.err();
    Ok(Observed::errno(errno.context("the connection was made despite the cut path")?))
}

fn exceed_user_timeout(stage: &Stage<'_>) -> Result<Observed> {
    let pair = stage.open_and_talk(stage.net)?;
    user_timeout(&pair.client, Duration::from_millis(1_500))?;
    stage.cut_path()?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}
