//! IPVS services without a server for a connection.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::{
    CLIENT, Observed, PORT, Scenario, Stage, TracerUse,
    ipvs::{NEVER, ipvs, serve},
};
use crate::{
    actor::try_connect,
    expect::{Expect, Incident},
    lab::Net,
    rawtcp::{RawEnd, SYN},
};

pub const SCENARIOS: &[Scenario] = &[
    ipvs("no_backend", |net| refused(dropped(net)), |stage| no_servers(stage, stage.net)),
    ipvs(
        "no_backend_v6",
        |net| refused(dropped(net.v6())),
        |stage| no_servers(stage, stage.net.v6()),
    ),
    ipvs("no_backend_weight_zero", |net| refused(dropped(net).evidence("weight 0")), weight_zero),
    // The node neither sends a reset nor has a socket that fails.
    ipvs("no_backend_remote_client", |net| Expect::one(dropped(net)), remote_client),
    ipvs(
        "no_backend_no_kprobes",
        |net| refused(by_tracepoints(net)),
        |stage| no_servers(stage, stage.net),
    )
    .tracer(TracerUse::NoKprobes),
    ipvs("near_miss_no_backend", |net| Expect::one(connection_refused(net)), closed_port),
];

fn dropped(net: Net) -> Incident {
    let mut incident = Incident::new("no_backend", net.client(CLIENT), net.vip(PORT))
        .observed()
        .action("drop")
        .origin("none")
        .first_fix("give_it_a_server", "kube-proxy");
    incident.victims = vec!["source"];
    incident
}

/// When the answer to the first SYN arrives, the client's socket may still be locked by the connect. Then the answer
/// to the second SYN ends the connect, after the incident was printed.
fn refused(incident: Incident) -> Expect {
    Expect::one(incident).actors_see(&["ECONNREFUSED"])
}

fn by_tracepoints(net: Net) -> Incident {
    dropped(net).confidence(&["correlated"]).on(
        &["5.10"],
        "without kprobes 5.10 does not show that netfilter dropped a packet",
        |_| connection_refused(net),
    )
}

fn connection_refused(net: Net) -> Incident {
    Incident::new("connection_refused", net.client(CLIENT), net.vip(PORT))
        .victim("source", "ECONNREFUSED")
}

fn connect_is_refused(stage: &Stage<'_>, from: SocketAddr, to: SocketAddr) -> Result<Observed> {
    let errno = try_connect(stage.lab.client()?, from, to)?.err();
    let errno = errno.context("the connection was made")?;
    ensure!(errno == Errno::CONNREFUSED, "the connect ended in {errno}");
    Ok(Observed::errno(errno))
}

fn no_servers(stage: &Stage<'_>, net: Net) -> Result<Observed> {
    serve(stage, net.vip(PORT), &[], NEVER)?;
    connect_is_refused(stage, net.client(CLIENT), net.vip(PORT))
}

fn weight_zero(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    serve(stage, net.vip(PORT), &[net.server(PORT)], NEVER)?;
    let drain = format!("ipvsadm -e -t {} -r {} -m -w 0", net.vip(PORT), net.server(PORT));
    stage.lab.node()?.run(&drain)?;
    connect_is_refused(stage, net.client(CLIENT), net.vip(PORT))
}

/// A SYN and its retransmission, from a host that is not on this machine.
fn remote_client(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    serve(stage, net.vip(PORT), &[], NEVER)?;
    let SocketAddr::V4(service) = net.vip(PORT) else { anyhow::bail!("the service is not IPv4") };
    let client = RawEnd::new(stage.lab.client()?, net.client(CLIENT))?;
    for _ in 0..2 {
        client.send(service, 1_000_000, 0, SYN)?;
    }
    Ok(Observed::default())
}

/// The service has a server without a listener.
fn closed_port(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    serve(stage, net.vip(PORT), &[net.server(PORT)], NEVER)?;
    connect_is_refused(stage, net.client(CLIENT), net.vip(PORT))
}
