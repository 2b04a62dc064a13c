//! Connections through IPVS that end for another reason than their entry's end, or do not end.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::{
    CLIENT, PORT, Scenario, Stage, Witness,
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
    // conn_reuse_mode: the old entry is ended for the new SYN.
    ipvs("near_miss_ipvs_port_reused", |_| Expect::nothing(), reuse_port),
    // The answer to a SYN is never the end of an older connection.
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

fn keepalive_protects(stage: &Stage<'_>) -> Result<Witness> {
    let connection = Connection::tracked(stage, TIMEOUT)?;
    let second = Duration::from_secs(1);
    keepalive(&connection.client, second, second, 9)?;
    let deadline = Instant::now() + Duration::from_secs(2 * TIMEOUT + 2);
    stage.lab.node()?.enter(|| {
        while Instant::now() < deadline {
            let table = proc_net("ip_vs_conn")?;
            ensure!(has_entry(&table, CLIENT), "the entry ended in spite of keepalive");
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    send(&connection.client, "SELECT 2;\n")?;
    receive(&connection.server, "SELECT 2;\n")?;
    connection.keep(stage);
    Ok(Witness::default())
}

/// After the first connection, another one with the same ports dies of something else.
fn tuple_reused(stage: &Stage<'_>) -> Result<Witness> {
    let net = stage.net;
    let first = Connection::tracked(stage, TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    let idle = first.idle_since.elapsed();
    send(&first.client, "SELECT 2;\n")?;
    let errno = wait_error(&first.client)?;
    // Without the other end the server would answer the new SYN for the old connection.
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
    Ok(Witness { idle: Some(idle), ..Witness::errno(errno) })
}

/// Closed in order, and opened again from the same port while IPVS still has the entry.
fn reuse_port(stage: &Stage<'_>) -> Result<Witness> {
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
    Ok(Witness::default())
}

/// After the first connection, the service is taken away and the same ports are refused.
fn refused_later(stage: &Stage<'_>) -> Result<Witness> {
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
    Ok(Witness { idle: Some(idle), ..Witness::errno(errno) })
}

fn close_unread(stage: &Stage<'_>) -> Result<Witness> {
    let Connection { listener, client, server, .. } = Connection::tracked(stage, NEVER)?;
    send(&client, "SELECT 2;\n")?;
    wait_unread(&server)?;
    drop(server);
    let errno = wait_error(&client)?;
    stage.keep(listener);
    stage.keep(client);
    Ok(Witness::errno(errno))
}

/// Connects to the service to see that somebody listens, and hangs up.
fn check_health(stage: &Stage<'_>) -> Result<Witness> {
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
    Ok(Witness::errno(errno))
}
