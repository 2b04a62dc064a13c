//! The program at one end broke the connection, or its socket no longer exists.

use std::net::TcpStream;

use anyhow::Result;

use super::{CLIENT, Observed, PORT, Pair, Scenario, Stage};
use crate::{
    actor::{abort_on_close, accept, connect, listen, send, talk, wait_error, wait_unread},
    expect::{Expect, Incident},
    lab::{Net, Topology},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario::direct(
        "close_unread_data",
        |net| Expect::one(aborted("close_unread_data", net)),
        |stage| close_unread(stage, stage.net),
    ),
    Scenario::direct(
        "close_unread_data_v6",
        |net| Expect::one(aborted("close_unread_data", net.v6())),
        |stage| close_unread(stage, stage.net.v6()),
    ),
    Scenario::direct("linger_zero", |net| Expect::one(aborted("linger_zero", net)), linger_zero),
    Scenario::new(
        "wrong_backend",
        Topology::RoutedTwo,
        |net| Expect::one(moved("wrong_backend", net)),
        |stage| move_address(stage, true),
    ),
    Scenario::new(
        "socket_gone",
        Topology::RoutedTwo,
        |net| Expect::one(moved("socket_gone", net)),
        |stage| move_address(stage, false),
    ),
];

fn aborted(cause: &'static str, net: Net) -> Incident {
    Incident::new(cause, net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

/// The service's address has moved to a host that never had the connection.
fn moved(cause: &'static str, net: Net) -> Incident {
    Incident::new(cause, net.client(CLIENT), net.vip(PORT))
        .inferred()
        .victim("source", "ECONNRESET")
        .origin("local_stack")
}

fn close_unread(stage: &Stage<'_>, net: Net) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(net)?;
    send(&client, "SELECT 2;\n")?;
    wait_unread(&server)?;
    drop(server);
    fails(stage, client)
}

fn fails(stage: &Stage<'_>, client: TcpStream) -> Result<Observed> {
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}

fn linger_zero(stage: &Stage<'_>) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    abort_on_close(&server)?;
    drop(server);
    fails(stage, client)
}

/// The route to the service's address changes while the connection is open.
fn move_address(stage: &Stage<'_>, other_listens: bool) -> Result<Observed> {
    let (net, lab) = (stage.net, stage.lab);
    let vip = net.vip(PORT);
    for host in [lab.server()?, lab.spare()?] {
        host.run(&format!("ip addr add {}/32 dev lo", vip.ip()))?;
    }
    let node = lab.node()?;
    node.run(&format!("ip route add {} via {}", vip.ip(), net.server(0).ip()))?;
    let listener = listen(lab.server()?, vip)?;
    if other_listens {
        stage.keep(listen(lab.spare()?, vip)?);
    }
    let client = connect(lab.client()?, net.client(CLIENT), vip)?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    stage.keep(listener);
    stage.keep(server);
    node.run(&format!("ip route replace {} via {}", vip.ip(), net.spare(0).ip()))?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}
