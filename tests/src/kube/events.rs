//! Makes each event of the table happen to real connections.

use std::net::TcpStream;

use anyhow::{Context, Result};

use super::{
    cluster::{Cluster, From, pod_address},
    proxy::{Mode, clean_up},
    stage::{Pair, Stage, Wire},
};
use crate::{
    actor::{PATIENCE, reaches, receive_end, send, talk, wait_error, wait_until},
    netns::proc_net,
    rawtcp::{ACK, PSH, RawEnd, SYN},
    scenarios::nat::{FAR, SENT},
};

/// Enough that by chance alone not all connections get their old back end again.
const MANY: usize = 8;
const BOTH: &[usize] = &[0, 1];

pub fn no_endpoints(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    refused(stage, From::Pod)
}

pub fn no_endpoints_node(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    refused(stage, From::Node)
}

fn refused(stage: &Stage<'_>, from: From) -> Result<Vec<Wire>> {
    stage.publish(&[])?;
    Ok(vec![stage.try_connect(from, stage.service.address())?])
}

pub fn unserved_port(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    unserved(stage, From::Pod)
}

pub fn unserved_port_node(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    unserved(stage, From::Node)
}

fn unserved(stage: &Stage<'_>, from: From) -> Result<Vec<Wire>> {
    stage.publish(&[(0, true), (1, true)])?;
    let mut address = stage.service.address();
    address.set_port(stage.service.other_port());
    Ok(vec![stage.try_connect(from, address)?])
}

pub fn endpoint_leaves(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    let pairs = stage.open(From::Pod, BOTH, 2)?;
    stage.publish(&[])?;
    stage.until("both pods are out", |dump| BOTH.iter().all(|&pod| !stage.sends_to(dump, pod)))?;
    stage.ask_all(pairs)
}

pub fn readiness_flap(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    let pairs = stage.open(From::Pod, BOTH, 2)?;
    stage.publish(&[(0, false), (1, true)])?;
    let mut saw = pairs.iter().map(Pair::ask).collect::<Result<Vec<_>>>()?;
    stage.publish(&[(0, true), (1, true)])?;
    saw.extend(stage.ask_all(pairs)?);
    Ok(saw)
}

pub fn proxy_restarted(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    let pairs = stage.open(From::Pod, BOTH, 2)?;
    stage.restart_in(stage.mode)?;
    stage.ask_all(pairs)
}

pub fn service_deleted(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    deleted(stage, From::Pod)
}

pub fn service_deleted_node(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    deleted(stage, From::Node)
}

fn deleted(stage: &Stage<'_>, from: From) -> Result<Vec<Wire>> {
    let pairs = stage.open(from, BOTH, 1)?;
    stage.delete_service()?;
    stage.ask_all(pairs)
}

pub fn service_deleted_connect(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    stage.publish(&[(0, true), (1, true)])?;
    stage.delete_service()?;
    Ok(vec![stage.try_connect(From::Pod, stage.service.address())?])
}

/// Closes the server, so that the client reads the end of the stream, and removes the pod.
fn kill_the_pod(stage: &Stage<'_>) -> Result<TcpStream> {
    let pair = stage.open(From::Pod, &[0], 1)?.pop().context("no connection")?;
    // The pod's listener too.
    stage.kept.borrow_mut().clear();
    let Pair { client, server, pod } = pair;
    drop(server);
    receive_end(&client)?;
    Cluster::kill_pod(pod)?;
    Ok(client)
}

pub fn pod_killed(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    stage.keep(kill_the_pod(stage)?);
    Ok(vec![Wire::Lives])
}

pub fn pod_killed_write(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    let client = kill_the_pod(stage)?;
    send(&client, "SELECT 2;\n")?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(vec![Wire::Fails(errno)])
}

/// The endpoint is on another node, and the connection comes from outside to this node's port.
pub fn local_policy(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    stage.api.put(stage.service.slice(&[(0, true)], "another"))?;
    stage.api.put(stage.service.local_node_port())?;
    let port = stage.service.node_port();
    // Until it knows the endpoint, it rejects.
    stage.until("kube-proxy programmed the node's port", |dump| {
        dump.contains(&port.to_string()) && stage.sends_to(dump, 0)
    })?;
    Ok(vec![stage.try_connect(From::Outside, From::Node.address(port))?])
}

/// A segment from the pod, far outside the window.
pub fn invalid_segment(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    let service = pod_address(0, stage.service.port());
    let wire = RawEnd::new(stage.cluster.pod(0)?, service)?;
    let pair = stage.open(From::Pod, &[0], 1)?.pop().context("no connection")?;
    let made = wire.await_segment("the handshake's ACK", |it| it.has(ACK) && !it.has(SYN))?;
    let last = wire.await_segment("the client's last ACK", |it| {
        it.has(ACK) && it.ack == made.ack.wrapping_add(SENT)
    })?;
    wire.send(made.from, last.ack.wrapping_add(FAR), last.seq, ACK | PSH)?;
    // Where the segment is dropped, data sent behind it arrives; else the RSTs come first.
    let saw = match stage.mode {
        Mode::Nftables => Wire::Fails(wait_error(&pair.server)?),
        Mode::Ipvs | Mode::Iptables => {
            talk(&pair.client, &pair.server)?;
            reaches(&pair.server, &pair.client)?.map_or(Wire::Lives, Wire::Fails)
        }
    };
    stage.keep(pair);
    Ok(vec![saw])
}

pub fn idle_expired(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    idle(stage, From::Pod)
}

pub fn idle_expired_node(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    idle(stage, From::Node)
}

fn idle(stage: &Stage<'_>, from: From) -> Result<Vec<Wire>> {
    let pairs = stage.open(from, BOTH, MANY)?;
    let node = stage.cluster.at(From::Node);
    let port = stage.service.port();
    wait_until(PATIENCE, "the entries expired", || {
        Ok(match stage.mode {
            Mode::Ipvs => {
                let port = format!(" {port:04X} ");
                !node.enter(|| proc_net("ip_vs_conn"))?.contains(&port)
            }
            Mode::Nftables | Mode::Iptables => {
                node.run(&format!("conntrack -L -p tcp --orig-port-dst {port}"))?.is_empty()
            }
        })
    })?;
    stage.ask_all(pairs)
}

pub fn cleanup(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    let pairs = stage.open(From::Pod, BOTH, 1)?;
    stage.proxy.borrow_mut().stop()?;
    clean_up()?;
    stage.ask_all(pairs)
}

pub fn to_nftables(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    to(stage, Mode::Nftables)
}

pub fn to_iptables(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    to(stage, Mode::Iptables)
}

pub fn to_ipvs(stage: &Stage<'_>) -> Result<Vec<Wire>> {
    to(stage, Mode::Ipvs)
}

fn to(stage: &Stage<'_>, mode: Mode) -> Result<Vec<Wire>> {
    let pairs = stage.open(From::Pod, BOTH, 4)?;
    stage.restart_in(mode)?;
    stage.ask_all(pairs)
}
