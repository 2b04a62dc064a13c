//! IPVS entries that end before their connection does.

use std::{
    net::Shutdown,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::net::sockopt;

use super::{
    By, FinishRound, FixTest, LIMIT, Outcome, Prediction, Round, StartRound, be_idle, connections,
    exchange, set_options, synack_once,
};
use crate::{
    actor::{PATIENCE, error_within, receive_end, send, talk, wait_until},
    expect::Incident,
    lab::{Net, Role, Topology},
    scenarios::{
        PORT, Pair, Stage,
        ipvs::{NEEDS, NEVER, serve, track},
        ipvs_lost::{first_dropped, half_open, serve_half_open},
    },
};

pub const FIX_TESTS: &[FixTest] = &[
    ipvs(
        "fix_ipvs_idle_expired",
        idle_expired,
        Prediction::In(Role::Node),
        By::FixOnlyNew("raise_ipvs_timeout", "already idle"),
        |stage| balanced(stage, false),
    ),
    ipvs(
        "fix_ipvs_idle_expired_keepalive",
        idle_expired,
        Prediction::In(Role::Node),
        By::Advice("keepalive_below_limit"),
        |stage| balanced(stage, false),
    ),
    // SO_KEEPALIVE is on, with the default of 7200 s in the client's namespace.
    ipvs(
        "fix_ipvs_idle_expired_keepalive_time",
        idle_expired,
        Prediction::In(Role::Node),
        By::Chosen("keepalive_below_limit", "keeps its deadline"),
        |stage| balanced(stage, true),
    ),
    ipvs(
        "fix_ipvs_halfclose_expired",
        |net, round| incident("ipvs_halfclose_expired", net, round),
        Prediction::In(Role::Node),
        By::Fix("raise_ipvs_fin_timeout"),
        half_closed,
    ),
    ipvs(
        "fix_ipvs_server_removed",
        |net, round| incident("ipvs_server_removed", net, round),
        Prediction::In(Role::Node),
        By::Advice("drain_before_removal"),
        server_removed,
    ),
    ipvs(
        "fix_ipvs_entry_dropped",
        |net, round| incident("ipvs_entry_dropped", net, round),
        Prediction::In(Role::Node),
        By::Fix("switch_drop_entry_off"),
        defended,
    ),
];

const fn ipvs(
    name: &'static str,
    expect: fn(Net, &Round) -> Incident,
    prediction: Prediction,
    by: By,
    set_up: for<'a> fn(&'a Stage<'a>) -> Result<StartRound<'a>>,
) -> FixTest {
    FixTest::new(name, Topology::Routed, expect, prediction, by, set_up).needs(NEEDS)
}

fn incident(cause: &'static str, net: Net, round: &Round) -> Incident {
    Incident::new(cause, net.client(round.port), net.vip(PORT))
}

fn idle_expired(net: Net, round: &Round) -> Incident {
    incident("ipvs_idle_expired", net, round).observed().ipvs_timeout(LIMIT)
}

/// Opens connections through the service, on which both sides have sent data.
fn through_service<'a>(
    stage: &'a Stage<'a>,
    timeout: u64,
) -> Result<impl Fn(&Round) -> Result<Pair> + 'a> {
    let net = stage.net;
    track(stage)?;
    serve(stage, net.vip(PORT), &[net.server(PORT)], timeout)?;
    connections(stage, net.vip(PORT))
}

fn balanced<'a>(stage: &'a Stage<'a>, keepalive: bool) -> Result<StartRound<'a>> {
    let open = through_service(stage, LIMIT)?;
    Ok(Box::new(move |round| {
        let Pair { client, server } = open(round)?;
        if keepalive {
            sockopt::set_socket_keepalive(&client, true).context("set SO_KEEPALIVE")?;
        }
        if let Some(advice) = &round.advice {
            set_options(&client, advice)?;
        }
        let since = Instant::now();
        Ok(Box::new(move || {
            be_idle(since);
            exchange(stage, client, server)
        }))
    }))
}

/// The server shuts its side down; the client goes on sending.
fn half_closed<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let open = through_service(stage, NEVER)?;
    stage.lab.node()?.run(&format!("ipvsadm --set 0 {LIMIT} 0"))?;
    Ok(Box::new(move |round| {
        let Pair { client, server } = open(round)?;
        server.shutdown(Shutdown::Write).context("shut the server's side down")?;
        receive_end(&client)?;
        let since = Instant::now();
        Ok(Box::new(move || {
            be_idle(since);
            exchange(stage, client, server)
        }))
    }))
}

/// If the server is removed at once, its clients hang. If it is drained first, it is removed after its last connection.
fn server_removed<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    stage.lab.node()?.sysctl("net/ipv4/vs/expire_nodest_conn", 0)?;
    let open = through_service(stage, NEVER)?;
    let (service, server) = (stage.net.vip(PORT), stage.net.server(PORT));
    Ok(Box::new(move |round| {
        let node = stage.lab.node()?;
        let is_drained = round.advice.is_some();
        // Not earlier: once the server is back in its service, rsttrace cannot see that it was removed.
        if active_connections(&node.run("ipvsadm -Ln")?).is_none() {
            node.run(&format!("ipvsadm -a -t {service} -r {server} -m"))?;
        }
        // The entry of a connection that hung still exists.
        let others = active_connections(&node.run("ipvsadm -Ln")?);
        let Pair { client, server: end } = open(round)?;
        let begun: FinishRound<'_> = Box::new(move || {
            if !is_drained {
                node.run(&format!("ipvsadm -d -t {service} -r {server}"))?;
                return exchange(stage, client, end);
            }
            node.run(&format!("ipvsadm -e -t {service} -r {server} -m -w 0"))?;
            // The connection goes on, and its client closes it after its last query.
            talk(&client, &end)?;
            drop(client);
            receive_end(&end)?;
            drop(end);
            wait_until(PATIENCE, "the end of the server's connections", || {
                Ok(active_connections(&node.run("ipvsadm -Ln")?) == others)
            })?;
            node.run(&format!("ipvsadm -d -t {service} -r {server}"))?;
            node.run(&format!("ipvsadm -a -t {service} -r {server} -m"))?;
            Ok(Outcome::default())
        });
        Ok(begun)
    }))
}

/// `  -> 10.12.2.2:3306     Masq    0      1          0`: the fifth column of the only server.
fn active_connections(services: &str) -> Option<u32> {
    let server = services.lines().find(|line| line.contains("-> 10."))?;
    server.split_whitespace().nth(4)?.parse().ok()
}

const DROP_ENTRY: &str = "net/ipv4/vs/drop_entry";
/// Within this time the drop_entry defence very likely drops an entry.
const DEFENDED: Duration = Duration::from_secs(5);

fn defended<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let node = stage.lab.node()?;
    serve_half_open(stage)?;
    synack_once(node)?;
    node.sysctl(DROP_ENTRY, 3)?;
    Ok(Box::new(move |round| {
        let clients = half_open(stage, round.port)?;
        Ok(Box::new(move || {
            let is_on = node.sysctl_value(DROP_ENTRY)? != 0;
            let limit = if is_on { PATIENCE } else { DEFENDED };
            let lost = first_dropped(node, &clients, Instant::now() + limit)?;
            let (port, client) = &clients[lost.unwrap_or(0)];
            send(client, "SELECT 1;\n")?;
            let errno = error_within(client, Duration::from_secs(2))?;
            let ended = Outcome { errno, port: Some(*port) };
            clients.into_iter().for_each(|(_, client)| stage.keep(client));
            Ok(ended)
        }))
    }))
}
