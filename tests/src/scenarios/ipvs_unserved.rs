//! Services that lose their servers for another reason than the removal of one server, and clients that are not on
//! this machine: no socket here fails, but this node drops their packets.

use std::{thread, time::Duration};

use anyhow::{Context, Result, anyhow};

use super::{
    CLIENT, Observed, PORT, Scenario, Stage, TracerUse,
    ipvs::{Connection, NEVER, ipvs, serve, track, wait_expired},
};
use crate::{
    actor::{connect, listen, try_connect},
    expect::{Expect, Incident},
    guest::Need,
    lab::Net,
    rawtcp::{ACK, Conversation, PSH, RawEnd, v4},
};

/// tcp_retries2: the client times out after about 6 s.
const RETRIES: u8 = 4;

pub const SCENARIOS: &[Scenario] = &[
    ipvs(
        "ipvs_server_removed_with_service",
        |net| Expect::one(deleted(net)),
        |stage| reset_after(stage, &format!("ipvsadm -D -t {}", stage.net.vip(PORT))),
    ),
    ipvs(
        "ipvs_entry_dropped_cleared",
        |net| Expect::one(reset(net).observed().nat(net.server(PORT))),
        |stage| reset_after(stage, "ipvsadm -C"),
    ),
    // Without expire_nodest_conn the entries stay. Without any service IPVS does not look them up; with another
    // service their packets are dropped.
    ipvs(
        "ipvs_entry_dropped_cleared_kept",
        |net| Expect::one(unhooked(net)),
        |stage| clear_and_keep(stage, false),
    ),
    ipvs(
        "ipvs_entry_dropped_cleared_silent",
        |net| {
            let cleared = cleared(net).observed().nat(net.server(PORT));
            Expect::one(cleared.victim("source", "ETIMEDOUT").action("timeout"))
        },
        |stage| clear_and_keep(stage, true),
    ),
    // Alone: rsttrace searches every namespace for the client, and the other scenarios together have
    // hundreds.
    ipvs(
        "ipvs_server_removed_remote_ends",
        |net| Expect::one(dropped(net)),
        |stage| remove_between_remote_ends(stage, false),
    )
    .tracer(TracerUse::Own),
    // IPVS has its maximum of connections, and the SYN is dropped without an answer. The service is added before the
    // tracer starts, because otherwise the tracer would not know which namespace to check.
    ipvs("retransmission_timeout_ipvs_conn_max", |net| Expect::one(full(net)), fill_table)
        .needs(&[Need::Ipvs, Need::IpvsConnMax])
        .tracer(TracerUse::Late),
    // The server is added again before the next retransmission, which then succeeds.
    ipvs(
        "near_miss_ipvs_server_added_again",
        |_| Expect::nothing(),
        |stage| remove_between_remote_ends(stage, true),
    ),
];

fn full(net: Net) -> Incident {
    Incident::new("retransmission_timeout", net.client(CLIENT), net.vip(PORT))
        .victim("source", "ETIMEDOUT")
        .evidence("net.ipv4.vs.conn_max")
        .first_fix("raise_ipvs_conn_max", "node")
}

fn deleted(net: Net) -> Incident {
    Incident::new("ipvs_server_removed", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("source", "ECONNRESET")
        .origin("local_stack")
        .evidence("deleted the IPVS service")
        .first_fix("drain_before_removal", "kube-proxy")
}

fn cleared(net: Net) -> Incident {
    Incident::new("ipvs_entry_dropped", net.client(CLIENT), net.vip(PORT))
        .evidence("ipvsadm")
        .first_fix("keep_the_services", "node")
}

fn reset(net: Net) -> Incident {
    cleared(net).victim("source", "ECONNRESET").origin("local_stack")
}

fn unhooked(net: Net) -> Incident {
    reset(net).confidence(&["correlated"])
}

fn dropped(net: Net) -> Incident {
    Incident::new("ipvs_server_removed", net.remote_client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.remote(PORT))
        .action("drop")
        .origin("none")
        .evidence("ipvsadm")
        .first_fix("drain_before_removal", "kube-proxy")
}

fn reset_after(stage: &Stage<'_>, command: &str) -> Result<Observed> {
    let node = stage.lab.node()?;
    let connection = Connection::tracked(stage, NEVER)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 1)?;
    node.run(command)?;
    wait_expired(stage, CLIENT)?;
    connection.client_writes(stage)
}

fn clear_and_keep(stage: &Stage<'_>, another: bool) -> Result<Observed> {
    let node = stage.lab.node()?;
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", RETRIES)?;
    let connection = Connection::tracked(stage, NEVER)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 0)?;
    node.run("ipvsadm -C")?;
    if another {
        node.run(&format!("ipvsadm -A -t {} -s rr", stage.net.vip(PORT + 1)))?;
    }
    connection.client_writes(stage)
}

fn fill_table(stage: &Stage<'_>) -> Result<Observed> {
    let (net, at, node) = (stage.net, stage.lab.client()?, stage.lab.node()?);
    at.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    serve(stage, net.vip(PORT), &[net.server(PORT)], NEVER)?;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    stage.keep(connect(at, net.client(CLIENT + 1), net.vip(PORT))?);
    (stage.start_tracer)()?;
    node.sysctl("net/ipv4/vs/conn_max", 1)?;
    let errno = try_connect(at, net.client(CLIENT), net.vip(PORT))?.err();
    Ok(Observed::errno(errno.context("IPVS made more connections than conn_max")?))
}

/// This machine does not have the addresses of the two ends. Their packets are routed to the namespaces next to the
/// node, where raw sockets send and receive them.
fn remove_between_remote_ends(stage: &Stage<'_>, add_again: bool) -> Result<Observed> {
    let (net, node) = (stage.net, stage.lab.node()?);
    let (client, server) = (net.remote_client(CLIENT), net.remote(PORT));
    for (end, via) in [(client, net.client(0)), (server, net.server(0))] {
        node.run(&format!("ip route add {} via {}", end.ip(), via.ip()))?;
    }
    track(stage)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 0)?;
    serve(stage, net.vip(PORT), &[server], NEVER)?;
    let near = RawEnd::new(stage.lab.client()?, client)?;
    let far = RawEnd::new(stage.lab.server()?, server)?;
    let service = v4(net.vip(PORT))?;
    let Conversation { seq, ack, .. } = thread::scope(|scope| {
        let serving = scope.spawn(|| far.serve_first_request());
        let conversation = near.request(service)?;
        serving.join().map_err(|_| anyhow!("the server's thread panicked"))??;
        Ok::<_, anyhow::Error>(conversation)
    })?;

    node.run(&format!("ipvsadm -d -t {service} -r {server}"))?;
    let retry = || near.send(service, seq.wrapping_add(1), ack, ACK | PSH);
    retry()?;
    if add_again {
        node.run(&format!("ipvsadm -a -t {service} -r {server} -m"))?;
    }
    // Like a sender with a retransmission timeout of 400 ms that doubles each time: rsttrace reports what it learns
    // after one retransmission with the next one.
    for wait in [400, 800, 1600, 3200, 6400] {
        thread::sleep(Duration::from_millis(wait));
        retry()?;
    }
    if add_again {
        far.await_segment("the retry", |it| it.seq == seq.wrapping_add(1))?;
    }
    stage.keep_alive((near, far));
    Ok(Observed::default())
}
