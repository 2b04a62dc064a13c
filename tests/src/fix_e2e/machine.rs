//! Limits that all namespaces share, so these tests run alone.

use std::{cell::Cell, net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{By, FixTest, Outcome, Prediction, Round, StartRound, synack_once};
use crate::{
    actor::{accept, connect, error_within, listen, receive_end, send, talk, try_connect},
    expect::Incident,
    guest::Need,
    lab::{Net, Role, Topology},
    scenarios::{
        PORT, Stage,
        capacity::{COUNT, FILLERS, Limit, ROOM, fill, track},
        nat::{HalfOpen, UNMUTE, serve_by_turns},
    },
};

pub const FIX_TESTS: &[FixTest] = &[
    FixTest::new(
        "fix_conntrack_table_full",
        Topology::Routed,
        |net, it| incident("conntrack_table_full", net, it).action("drop"),
        Prediction::In(Role::Node),
        By::Fix("restore_conntrack_max"),
        full_table,
    )
    .needs(&[Need::Conntrack])
    .alone(),
    FixTest::new(
        "fix_conntrack_early_drop",
        Topology::RoutedTwo,
        |net, it| Incident::new("conntrack_early_drop", net.client(it.port), net.vip(PORT)),
        Prediction::In(Role::Node),
        By::Fix("restore_conntrack_max"),
        evicted,
    )
    .needs(&[Need::Conntrack])
    .alone(),
    FixTest::new(
        "fix_tcp_resource_limit",
        Topology::Direct,
        |net, it| incident("tcp_resource_limit", net, it),
        Prediction::OnHost,
        By::Fix("raise_tcp_limits"),
        no_orphans,
    )
    .alone(),
];

fn incident(cause: &'static str, net: Net, round: &Round) -> Incident {
    Incident::new(cause, net.client(round.port), net.server(PORT))
}

/// The table is full of established connections, which the kernel does not evict.
fn full_table<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let (net, client, node) = (stage.net, stage.lab.client()?, stage.lab.node()?);
    client.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    track(node)?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let limit = node.sysctl_value(COUNT)? + ROOM;
    stage.keep_alive(Limit::max(limit)?);
    for filler in fill(stage, limit, FILLERS..)? {
        stage.keep(filler);
        stage.keep(accept(&listener)?);
    }
    Ok(Box::new(move |round| {
        let port = round.port;
        let listener = listener.try_clone()?;
        Ok(Box::new(move || match try_connect(client, net.client(port), net.server(PORT))? {
            Err(errno) => Ok(Outcome::from(Some(errno))),
            Ok(stream) => {
                let server = accept(&listener)?;
                talk(&stream, &server)?;
                stage.keep(stream);
                stage.keep(server);
                Ok(Outcome::default())
            }
        }))
    }))
}

/// Ports of unanswered flows, the only other kind of entry that a full table evicts.
const DATAGRAMS: std::ops::Range<u16> = 10_000..30_000;
const BURST: usize = 500;

/// New flows evict the half-open entry. conntrack then picks the connection up again and sends it to the other server.
fn evicted<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let (net, lab) = (stage.net, stage.lab);
    serve_by_turns(stage)?;
    synack_once(lab.node()?)?;
    let (client_side, node) = (lab.client()?, lab.node()?);
    // `early_drop` searches eight buckets only (NF_CT_EVICTION_RANGE): in a small table one of many tries
    // finds the entry.
    stage.keep_alive([Limit::buckets(512)?, Limit::max(node.sysctl_value(COUNT)? + 4)?]);
    let filler = client_side.enter(|| Ok(UdpSocket::bind(net.client(0))?))?;
    // As on a host whose table has been full for a while, with evictions.
    let send_burst = move |ports: std::ops::Range<u16>| -> Result<()> {
        for port in ports {
            filler.send_to(b"x", net.server(port)).context("send a datagram")?;
        }
        Ok(())
    };
    send_burst(DATAGRAMS.start..DATAGRAMS.start + 50)?;
    // The number of flows that the eviction needed.
    let needed = Cell::new(DATAGRAMS.end);
    let (send_burst, needed) = (std::rc::Rc::new(send_burst), std::rc::Rc::new(needed));
    Ok(Box::new(move |round| {
        let (port, send_burst, needed) = (round.port, send_burst.clone(), needed.clone());
        node.run("conntrack -F")?;
        let HalfOpen { client, entry } = HalfOpen::connect(stage, port)?;
        Ok(Box::new(move || {
            let mut ports = (DATAGRAMS.start..needed.get()).step_by(BURST);
            let mut evicted = false;
            while let Some(from) = ports.next().filter(|_| !evicted) {
                send_burst(from..from + BURST as u16)?;
                evicted = node.run(&entry).is_err();
                if evicted {
                    needed.set(from + BURST as u16);
                }
            }
            // After the burst the table has room for the connection's next packet.
            node.run("conntrack -D -p udp")?;
            client_side.nft(UNMUTE)?;
            send(&client, "SELECT 2;\n")?;
            let errno = error_within(&client, SURVIVES)?;
            ensure!(errno.is_some() == evicted, "evicted: {evicted}, ended in {errno:?}");
            stage.keep(client);
            Ok(errno.into())
        }))
    }))
}

/// A socket without an error for this long has not been reset: the first retransmission of a FIN is sent sooner
/// (TCP_RTO_MIN).
const SURVIVES: Duration = Duration::from_secs(2);

/// The FIN is never acknowledged, and no orphan is allowed.
fn no_orphans<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let net = stage.net;
    stage.keep_alive(Limit::orphans(0)?);
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    Ok(Box::new(move |round| {
        let client = connect(stage.lab.client()?, net.client(round.port), net.server(PORT))?;
        let server = accept(&listener)?;
        talk(&client, &server)?;
        Ok(Box::new(move || {
            stage.cut_path()?;
            drop(server);
            let errno = error_within(&client, SURVIVES)?;
            stage.restore_path()?;
            if errno.is_none() {
                receive_end(&client)?;
            }
            stage.keep(client);
            Ok(errno.into())
        }))
    }))
}
