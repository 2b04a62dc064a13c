//! Services that lose their servers for another reason than one server's removal, and clients that are not on
//! this machine: nobody here is hurt, and this node drops their packets.

use std::{thread, time::Duration};

use anyhow::{Context, Result, anyhow};

use super::{
    CLIENT, PORT, Scenario, Stage, TracerUse, Witness,
    ipvs::{Connection, NEVER, ipvs, serve, track, wait_expired},
};
use crate::{
    actor::{connect, listen, try_connect},
    expect::{Expect, Incident},
    guest::Need,
    lab::Net,
    rawtcp::{ACK, Conversation, PSH, RawEnd, v4},
};

/// The client gives up after about 6 s.
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
    // Without expire_nodest_conn the entries stay. Without any service nobody looks at them; with another one
    // their packets are dropped.
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
    // Alone: whether the client is on this machine is asked in every namespace, and all other scenarios have
    // hundreds.
    ipvs(
        "ipvs_server_removed_remote_ends",
        |net| Expect::one(dropped(net)),
        |stage| remove_between_remote_ends(stage, false),
    )
    .tracer(TracerUse::Own),
    // IPVS holds as many connections as it may: the SYN is dropped in silence. The service is there before the
    // tracer, which would otherwise not know where to look.
    ipvs("retransmission_timeout_ipvs_conn_max", |net| Expect::one(full(net)), fill_table)
        .needs(&[Need::Ipvs, Need::IpvsConnMax])
        .tracer(TracerUse::Late),
    // Added again before the next retry: that gets through.
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

fn reset_after(stage: &Stage<'_>, command: &str) -> Result<Witness> {
    let node = stage.lab.node()?;
    let connection = Connection::tracked(stage, NEVER)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 1)?;
    node.run(command)?;
    wait_expired(stage, CLIENT)?;
    connection.client_writes(stage)
}

fn clear_and_keep(stage: &Stage<'_>, another: bool) -> Result<Witness> {
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

fn fill_table(stage: &Stage<'_>) -> Result<Witness> {
    let (net, at, node) = (stage.net, stage.lab.client()?, stage.lab.node()?);
    at.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    serve(stage, net.vip(PORT), &[net.server(PORT)], NEVER)?;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    stage.keep(connect(at, net.client(CLIENT + 1), net.vip(PORT))?);
    (stage.start_tracer)()?;
    node.sysctl("net/ipv4/vs/conn_max", 1)?;
    let errno = try_connect(at, net.client(CLIENT), net.vip(PORT))?.err();
    Ok(Witness::errno(errno.context("IPVS made one connection too many")?))
}

/// Both ends are addresses that this machine does not have; their packets reach the namespaces beside the node
/// and are written by hand there.
fn remove_between_remote_ends(stage: &Stage<'_>, add_again: bool) -> Result<Witness> {
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
    // As a sender with a retransmission timeout of 400 ms, its wait doubled each time: what is found out after one
    // retry is told with the next.
    for wait in [400, 800, 1600, 3200, 6400] {
        thread::sleep(Duration::from_millis(wait));
        retry()?;
    }
    if add_again {
        far.await_segment("the retry", |it| it.seq == seq.wrapping_add(1))?;
    }
    stage.keep_alive((near, far));
    Ok(Witness::default())
}
