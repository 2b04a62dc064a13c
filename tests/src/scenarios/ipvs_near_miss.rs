//! Connections through IPVS that break for another reason than the end of their entry, or do not break.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::{
    CLIENT, Observed, PORT, Scenario, Stage,
    ipvs::{Connection, NEVER, TIMEOUT, has_entry, idle_expired, ipvs, serve, track, wait_expired},
};
use crate::{
    actor::{
        abort_on_close, accept, connect, keepalive, listen, receive, receive_end, send, talk,
        try_connect, wait_error, wait_proc, wait_unread,
    },
    expect::{Expect, Incident},
    lab::Net,
    netns::proc_net,
};

pub const SCENARIOS: &[Scenario] = &[
    ipvs("close_unread_data_ipvs", |net| Expect::one(closed_by_server(net)), close_unread),
    ipvs("near_miss_ipvs_keepalive", |_| Expect::nothing(), keepalive_protects),
    ipvs(
        "near_miss_ipvs_tuple_reused",
        |net| Expect::one(idle_expired(net).or_both_victims()).then(closed_by_server(net)),
        tuple_reused,
    ),
    // conn_reuse_mode: the old entry is deleted for the new SYN.
    ipvs("near_miss_ipvs_port_reused", |_| Expect::nothing(), reuse_port),
    // The answer to a SYN never belongs to an older connection.
    ipvs(
        "near_miss_ipvs_refused_later",
        |net| Expect::one(idle_expired(net)).then(refused(net)),
        refused_later,
    ),
    ipvs(
        "handshake_rejected_health_check_ipvs",
        |net| Expect::one(health_check(net)).actors_see(&["ECONNRESET"]),
        check_health,
    ),
];

fn closed_by_server(net: Net) -> Incident {
    Incident::new("close_unread_data", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

fn refused(net: Net) -> Incident {
    Incident::new("connection_refused", net.client(CLIENT), net.vip(PORT))
        .victim("source", "ECONNREFUSED")
        .origin("local_stack")
}

fn health_check(net: Net) -> Incident {
    Incident::new("handshake_rejected", net.client(CLIENT), net.vip(PORT))
}

fn keepalive_protects(stage: &Stage<'_>) -> Result<Observed> {
    let connection = Connection::tracked(stage, TIMEOUT)?;
    let second = Duration::from_secs(1);
    keepalive(&connection.client, second, second, 9)?;
    let deadline = Instant::now() + Duration::from_secs(2 * TIMEOUT + 2);
    stage.lab.node()?.enter(|| {
        while Instant::now() < deadline {
            let table = proc_net("ip_vs_conn")?;
            ensure!(has_entry(&table, CLIENT), "the entry ended despite keepalive");
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    send(&connection.client, "SELECT 2;\n")?;
    receive(&connection.server, "SELECT 2;\n")?;
    connection.keep(stage);
    Ok(Observed::default())
}

/// After the first connection, another one with the same ports breaks for another reason.
fn tuple_reused(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let first = Connection::tracked(stage, TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    let idle = first.idle_since.elapsed();
    send(&first.client, "SELECT 2;\n")?;
    let errno = wait_error(&first.client)?;
    // The server's old socket must end too, or it would answer the new SYN.
    send(&first.server, "you have been idle\n")?;
    wait_error(&first.server)?;
    let Connection { listener, client, server, .. } = first;
    drop((client, server));

    let client =
        connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT)).context("again")?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    send(&client, "SELECT 3;\n")?;
    wait_unread(&server)?;
    drop(server);
    let second_errno = wait_error(&client)?;
    ensure!(second_errno == errno, "the second connection ended in {second_errno}");
    stage.keep(listener);
    stage.keep(client);
    Ok(Observed { idle: Some(idle), ..Observed::errno(errno) })
}

/// Closed with FIN, and opened again from the same port while IPVS still has the entry.
fn reuse_port(stage: &Stage<'_>) -> Result<Observed> {
    let (net, node) = (stage.net, stage.lab.node()?);
    node.sysctl("net/ipv4/vs/conn_reuse_mode", 1)?;
    let Connection { listener, client, server, .. } = Connection::tracked(stage, NEVER)?;
    drop(server);
    receive_end(&client)?;
    drop(client);
    wait_proc(node, "ip_vs_conn", "the entry's TIME_WAIT", |table| table.contains("TIME_WAIT"))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    stage.keep(listener);
    stage.keep(client);
    stage.keep(server);
    Ok(Observed::default())
}

/// After the first connection, the service is deleted and a connect from the same port is refused.
fn refused_later(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let first = Connection::tracked(stage, TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    let idle = first.idle_since.elapsed();
    send(&first.client, "SELECT 2;\n")?;
    let errno = wait_error(&first.client)?;
    let Connection { listener, client, server, .. } = first;
    drop(client);
    stage.lab.node()?.run(&format!("ipvsadm -D -t {}", net.vip(PORT)))?;
    let refused = try_connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?.err();
    ensure!(refused == Some(Errno::CONNREFUSED), "the second connect ended in {refused:?}");
    stage.keep(listener);
    stage.keep(server);
    Ok(Observed { idle: Some(idle), ..Observed::errno(errno) })
}

fn close_unread(stage: &Stage<'_>) -> Result<Observed> {
    let Connection { listener, client, server, .. } = Connection::tracked(stage, NEVER)?;
    send(&client, "SELECT 2;\n")?;
    wait_unread(&server)?;
    drop(server);
    let errno = wait_error(&client)?;
    stage.keep(listener);
    stage.keep(client);
    Ok(Observed::errno(errno))
}

/// Connects to the service to check that there is a listener, and aborts.
fn check_health(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    track(stage)?;
    serve(stage, net.vip(PORT), &[net.server(PORT)], NEVER)?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    abort_on_close(&client)?;
    drop(client);
    let errno = wait_error(&server)?;
    stage.keep(listener);
    stage.keep(server);
    Ok(Observed::errno(errno))
}
