//! IPVS entries that are lost for another reason than a timeout (a removed server, the drop_entry defence, an unload, a
//! fail-over), and similar cases.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    CLIENT, Observed, PORT, Scenario, Stage, TracerUse,
    ipvs::{
        Connection, NEEDS, NEVER, TIMEOUT, connections, has_entry, idle_expired, ipvs, serve,
        serve_at, track, wait_expired,
    },
};
use crate::{
    actor::{
        PATIENCE, POLL_EVERY, accept, connect, listen, receive_end, send, talk, wait_error,
        wait_forgotten, wait_retransmissions,
    },
    expect::{Expect, Incident},
    lab::{Net, Role, Topology},
    netns::Namespace,
    tools,
};

pub const SCENARIOS: &[Scenario] = &[
    // Without expire_nodest_conn, every packet is dropped without an answer.
    ipvs("ipvs_server_removed_silent", |net| Expect::one(hung(net)), remove_without_answer),
    ipvs(
        "ipvs_server_removed_before_start",
        |net| Expect::one(found_late(net)),
        remove_before_start,
    )
    .tracer(TracerUse::Late),
    // The entry expires while the client retransmits, and the next packet is answered.
    ipvs(
        "ipvs_server_removed_ran_out",
        |net| Expect::one(removed(net).victim("source", "ECONNRESET")),
        |stage| without_server(stage, TIMEOUT)?.client_writes(stage),
    ),
    // The server is removed because it is down.
    ipvs("near_miss_ipvs_server_dead", |net| Expect::one(dead(net)), remove_dead),
    ipvs("ipvs_entry_dropped", |net| Expect::one(by_defence(net)), defend),
    ipvs(
        "ipvs_entry_dropped_unload",
        |net| Expect::one(by_unload(net)).then(idle_expired(net)),
        unload,
    )
    .tracer(TracerUse::Own),
    Scenario::new(
        "ipvs_entry_dropped_failover",
        Topology::RoutedTwo,
        |net| Expect::one(by_failover(net)),
        fail_over,
    )
    .needs(NEEDS),
    ipvs(
        "near_miss_ipvs_server_on_director",
        |net| Expect::one(closed_here(net)),
        close_on_director,
    ),
];

fn removed(net: Net) -> Incident {
    Incident::new("ipvs_server_removed", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .evidence("ipvsadm")
        .first_fix("drain_before_removal", "kube-proxy")
}

fn hung(net: Net) -> Incident {
    removed(net).victim("source", "ETIMEDOUT").action("timeout").origin("none")
}

fn found_late(net: Net) -> Incident {
    Incident::new("ipvs_server_removed", net.client(CLIENT), net.vip(PORT))
        .inferred()
        .victim("source", "ETIMEDOUT")
        .action("timeout")
}

fn dead(net: Net) -> Incident {
    Incident::new("retransmission_timeout", net.client(CLIENT), net.vip(PORT))
        .observed()
        .victim("source", "ETIMEDOUT")
}

fn dropped(net: Net) -> Incident {
    Incident::new("ipvs_entry_dropped", net.client(CLIENT), net.vip(PORT))
        .victim("source", "ECONNRESET")
        .origin("local_stack")
}

fn by_defence(net: Net) -> Incident {
    dropped(net).observed().nat(net.server(PORT)).first_fix("switch_drop_entry_off", "node")
}

fn by_unload(net: Net) -> Incident {
    dropped(net).observed().nat(net.server(PORT)).evidence("unloaded ip_vs")
}

fn by_failover(net: Net) -> Incident {
    dropped(net).inferred().netns(&[Role::Spare, Role::Client])
}

fn closed_here(net: Net) -> Incident {
    Incident::new("socket_gone", net.client(CLIENT), net.vip(PORT))
        .or_cause("data_after_close")
        .victim("source", "EPIPE")
        .origin("local_stack")
}

/// A connection whose server has just been removed.
fn without_server(stage: &Stage<'_>, timeout: u64) -> Result<Connection> {
    let node = stage.lab.node()?;
    let connection = Connection::tracked(stage, timeout)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 0)?;
    remove(stage, node)?;
    Ok(connection)
}

fn remove(stage: &Stage<'_>, node: &Namespace) -> Result<()> {
    let net = stage.net;
    node.run(&format!("ipvsadm -d -t {} -r {}", net.vip(PORT), net.server(PORT))).map(drop)
}

fn remove_without_answer(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", RETRIES)?;
    without_server(stage, NEVER)?.client_writes(stage)
}

fn remove_before_start(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", RETRIES)?;
    let connection = without_server(stage, NEVER)?;
    (stage.start_tracer)()?;
    connection.client_writes(stage)
}

/// tcp_retries2: the client times out after about 6 s.
const RETRIES: u8 = 4;

fn remove_dead(stage: &Stage<'_>) -> Result<Observed> {
    let (client, node) = (stage.lab.client()?, stage.lab.node()?);
    client.sysctl("net/ipv4/tcp_retries2", RETRIES)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 0)?;
    let connection = Connection::tracked(stage, NEVER)?;
    stage.cut_path()?;
    send(&connection.client, "SELECT 2;\n")?;
    wait_retransmissions(client, PORT, RETRIES)?;
    remove(stage, node)?;
    let errno = wait_error(&connection.client)?;
    connection.keep(stage);
    Ok(Observed::errno(errno))
}

/// With this many half-open connections, the defence soon finds one, although it scans only 1/32 of the table per
/// second.
const HALF_OPEN: u16 = 48;

/// A service whose connections stay half-open for IPVS, because the client's ACKs are dropped before they reach
/// it.
pub fn serve_half_open(stage: &Stage<'_>) -> Result<()> {
    let (net, node) = (stage.net, stage.lab.node()?);
    serve(stage, net.vip(PORT), &[net.server(PORT)], NEVER)?;
    node.nft(
        "table inet handshake {
            chain early { type filter hook prerouting priority -300;
                iifname client tcp flags & (fin | syn | rst | psh | ack) == ack drop; }
        }",
    )?;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    Ok(())
}

/// Connects the clients of that service; returns them with their ports.
pub fn half_open(stage: &Stage<'_>, first: u16) -> Result<Vec<(u16, TcpStream)>> {
    let (client, net) = (stage.lab.client()?, stage.net);
    let connect = |port| Ok((port, connect(client, net.client(port), net.vip(PORT))?));
    (first..first + HALF_OPEN).map(connect).collect()
}

/// The index of the first client without an entry, if there is one before the deadline.
pub fn first_dropped(
    node: &Namespace,
    clients: &[(u16, TcpStream)],
    deadline: Instant,
) -> Result<Option<usize>> {
    loop {
        let table = connections(node)?;
        let missing = clients.iter().position(|(port, _)| !has_entry(&table, *port));
        if missing.is_some() || Instant::now() > deadline {
            return Ok(missing);
        }
        thread::sleep(POLL_EVERY);
    }
}

fn defend(stage: &Stage<'_>) -> Result<Observed> {
    let (net, node) = (stage.net, stage.lab.node()?);
    // The client's host would answer a SYN-ACK that is retransmitted after its entry was dropped.
    stage.lab.server()?.sysctl("net/ipv4/tcp_synack_retries", 0)?;
    serve_half_open(stage)?;
    let mut clients = half_open(stage, CLIENT)?;
    node.sysctl("net/ipv4/vs/drop_entry", 3)?;
    let lost = first_dropped(node, &clients, Instant::now() + PATIENCE)?;
    let lost = lost.context("the defence dropped no entry")?;
    node.sysctl("net/ipv4/vs/drop_entry", 0)?;
    let (port, client) = clients.swap_remove(lost);
    send(&client, "SELECT 1;\n")?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    clients.into_iter().for_each(|(_, client)| stage.keep(client));
    Ok(Observed { source: Some(net.client(port)), ..Observed::errno(errno) })
}

/// The module is unloaded while the tracer runs, and loaded again: the second connection's expiry is seen again.
fn unload(stage: &Stage<'_>) -> Result<Observed> {
    let (net, node) = (stage.net, stage.lab.node()?);
    let first = Connection::tracked(stage, NEVER)?;
    // A service would hold a reference to the module.
    node.run("ipvsadm -C")?;
    let deadline = Instant::now() + PATIENCE;
    while tools::run(None, "modprobe -r -q ip_vs_rr ip_vs", "").is_err() {
        // Namespaces of other scenarios end in the background.
        ensure!(Instant::now() < deadline, "ip_vs cannot be unloaded");
        thread::sleep(Duration::from_millis(200));
    }
    send(&first.client, "SELECT 2;\n")?;
    let errno = wait_error(&first.client)?;
    let Connection { listener, client, server, .. } = first;
    drop((client, server));

    tools::run(None, "modprobe ip_vs", "").context("load ip_vs again")?;
    track(stage)?;
    node.run("ip link del vip0")?;
    serve(stage, net.vip(PORT), &[net.server(PORT)], TIMEOUT)?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    let idle_since = talk(&client, &server)?;
    wait_expired(stage, CLIENT)?;
    let second = Connection { listener, client, server, idle_since }.client_writes(stage)?;
    ensure!(second.errno == Some(errno), "the connections ended in {errno} and {:?}", second.errno);
    Ok(second)
}

/// The VIP moves to a director with the same service and no entries.
fn fail_over(stage: &Stage<'_>) -> Result<Observed> {
    let (net, node, spare) = (stage.net, stage.lab.node()?, stage.lab.spare()?);
    let connection = Connection::tracked(stage, NEVER)?;
    serve_at(spare, net.vip(PORT), &[net.server(PORT)], NEVER)?;
    let vip = net.vip(PORT).ip();
    node.run(&format!("ip addr del {vip}/32 dev vip0"))?;
    node.run(&format!("ip route add {vip} via {}", net.spare(PORT).ip()))?;
    connection.client_writes(stage)
}

/// The server runs on the director and closes; its connection always has an entry.
fn close_on_director(stage: &Stage<'_>) -> Result<Observed> {
    let (net, node) = (stage.net, stage.lab.node()?);
    node.sysctl("net/ipv4/tcp_fin_timeout", 1)?;
    serve(stage, net.vip(PORT), &[], NEVER)?;
    node.run(&format!("ipvsadm -a -t {} -r {} -g", net.vip(PORT), net.node(PORT)))?;
    let listener = listen(node, net.vip(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    drop((server, listener));
    receive_end(&client)?;
    wait_forgotten(node, CLIENT)?;
    send(&client, "SELECT 2;\n")?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}
