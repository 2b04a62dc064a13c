//! conntrack entries that expire, or do not match a packet.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::{
    By, FixTest, LIMIT, Outcome, Prediction, Round, StartRound, be_idle, exchange, set_options,
};
use crate::{
    actor::{accept, connect, listen, talk, wait_error},
    expect::Incident,
    lab::{Net, Role, Topology},
    rawtcp::{ACK, PSH, RST, RawEnd, SYN, Segment},
    scenarios::{
        PORT, Stage,
        conntrack::{NEEDS, translate},
        nat::{FAR, SENT},
    },
};

pub const FIX_TESTS: &[FixTest] = &[
    conntrack("fix_conntrack_idle_expired", idle_expired, By::Fix("raise_conntrack_timeout"), idle),
    conntrack(
        "fix_conntrack_idle_expired_keepalive",
        idle_expired,
        By::Advice("keepalive_below_limit"),
        idle,
    ),
    conntrack("fix_conntrack_invalid", invalid, By::Fix("conntrack_be_liberal"), beyond_window),
];

const fn conntrack(
    name: &'static str,
    expect: fn(Net, &Round) -> Incident,
    by: By,
    set_up: for<'a> fn(&'a Stage<'a>) -> Result<StartRound<'a>>,
) -> FixTest {
    let prediction = Prediction::In(Role::Node);
    FixTest::new(name, Topology::Routed, expect, prediction, by, set_up).needs(NEEDS)
}

fn idle_expired(net: Net, round: &Round) -> Incident {
    Incident::new("conntrack_idle_expired", net.client(round.port), net.vip(PORT)).observed()
}

fn invalid(net: Net, round: &Round) -> Incident {
    Incident::new("conntrack_invalid", net.client(round.port), net.vip(PORT)).observed()
}

/// The server sends first after the idle time; its segment is not translated back.
fn idle<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let (net, node) = (stage.net, stage.lab.node()?);
    node.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", LIMIT)?;
    translate(stage, &net.server(PORT).to_string())?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    Ok(Box::new(move |round| {
        let client = connect(stage.lab.client()?, net.client(round.port), net.vip(PORT))?;
        let server = accept(&listener)?;
        let since = talk(&client, &server)?;
        if let Some(advice) = &round.advice {
            set_options(&server, advice)?;
        }
        Ok(Box::new(move || {
            be_idle(since);
            exchange(stage, server, client)
        }))
    }))
}

/// A segment from the server, far outside the window. conntrack classifies it as INVALID and does not translate it,
/// unless nf_conntrack_tcp_be_liberal is set. The client's host answers an untranslated segment with a RST, and a
/// translated one with an ACK.
fn beyond_window<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let (net, at) = (stage.net, stage.lab.server()?);
    stage.lab.node()?.sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", 0)?;
    translate(stage, &net.server(PORT).to_string())?;
    let listener = listen(at, net.server(PORT))?;
    Ok(Box::new(move |round| {
        let SocketAddr::V4(to) = net.client(round.port) else { bail!("the client is not IPv4") };
        let wire = RawEnd::new(at, net.server(PORT))?;
        let client = connect(stage.lab.client()?, to.into(), net.vip(PORT))?;
        let server = accept(&listener)?;
        let of_round = |it: &Segment| it.from == to && it.has(ACK) && !it.has(SYN);
        let made = wire.await_segment("the handshake's ACK", of_round)?;
        talk(&client, &server)?;
        let last = wire.await_segment("the client's last ACK", |it| {
            of_round(it) && it.ack == made.ack.wrapping_add(SENT)
        })?;
        Ok(Box::new(move || {
            wire.send(to, last.ack.wrapping_add(FAR), last.seq, ACK | PSH)?;
            let answer = wire.await_segment("the client's answer", |it| {
                it.from == to && (it.has(RST) || (it.ack == last.ack && it.seq == last.seq))
            })?;
            let errno = answer.has(RST).then(|| wait_error(&server)).transpose()?;
            stage.keep(client);
            stage.keep(server);
            Ok(Outcome::from(errno))
        }))
    }))
}
