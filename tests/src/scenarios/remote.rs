//! The reset comes from a host that is not on this machine. A raw socket simulates that host, so this kernel's TCP
//! neither has the other end of the connection nor sends the reset.

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};

use super::{CLIENT, Observed, PORT, Scenario, Stage};
use crate::{
    actor::{ANSWER, connect, send, talk, wait_acknowledged, wait_error},
    expect::{Expect, Incident},
    lab::{Net, Topology},
    rawtcp::{ACK, Conversation, PSH, RST, RawEnd, v4},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "peer_aborted",
        Topology::Direct,
        |net| Expect::one(received(net, "peer_aborted").inferred()),
        |stage| reset_by_remote(stage, RST | ACK),
    ),
    Scenario::new(
        "peer_state_lost",
        Topology::Direct,
        |net| Expect::one(received(net, "peer_state_lost").inferred()),
        |stage| reset_by_remote(stage, RST),
    ),
    Scenario::new(
        "middlebox_idle_timeout",
        Topology::Direct,
        |net| Expect::one(first_break(net)).then(measured(net)),
        forget_idle_flows,
    ),
    // Takes a minute and a half, in parallel with the other scenarios.
    Scenario::new(
        "middlebox_idle_timeout_unasked",
        Topology::Direct,
        |net| Expect::one(first_abort(net)).then(measured(net)),
        abort_idle_flows,
    ),
    // The server's socket is on this machine, and stays open.
    Scenario::new(
        "injected_reset",
        Topology::Routed,
        |net| Expect::one(injected(net)),
        |stage| inject(stage, RST | ACK),
    ),
    Scenario::new(
        "injected_reset_bare",
        Topology::Routed,
        |net| Expect::one(injected(net)),
        |stage| inject(stage, RST),
    ),
];

fn injected(net: Net) -> Incident {
    Incident::new("injected_reset", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("remote")
        .first_fix("find_the_sender", "firewall")
}

/// One sample is not enough to know a limit; the server may have aborted the connection as well.
fn first_abort(net: Net) -> Incident {
    received_by(net.client(CLIENT + 1), net, "peer_aborted").inferred()
}

/// One sample is not enough to know a limit.
fn first_break(net: Net) -> Incident {
    received_by(net.client(CLIENT + 1), net, "peer_state_lost").inferred()
}

fn measured(net: Net) -> Incident {
    received(net, "middlebox_idle_timeout")
        .inferred()
        .first_fix("keepalive_below_limit", "application")
}

fn received(net: Net, cause: &'static str) -> Incident {
    received_by(net.client(CLIENT), net, cause)
}

fn received_by(client: SocketAddr, net: Net, cause: &'static str) -> Incident {
    Incident::new(cause, client, net.remote(PORT))
        .victim("source", "ECONNRESET")
        .origin("remote")
        .on(
            &["5.10"],
            "tcp_reset has no sk_buff on 5.10: the RST's ACK bit cannot be read",
            Incident::unknown,
        )
}

/// Opens a connection to the simulated host, on which the client has sent one query, which was acknowledged.
fn converse(stage: &Stage<'_>, remote: &RawEnd, port: u16) -> Result<(TcpStream, Conversation)> {
    let (net, from_client) = (stage.net, stage.lab.client()?);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let client = connect(from_client, net.client(port), net.remote(PORT))?;
            send(&client, "SELECT 1;\n")?;
            Ok::<_, anyhow::Error>(client)
        });
        let conversation = remote.serve_first_request();
        let client = client.join().map_err(|_| anyhow!("the client's thread panicked"))?;
        Ok((client?, conversation?))
    })
}

fn reset_by_remote(stage: &Stage<'_>, flags: u8) -> Result<Observed> {
    // The address is routed to the server's namespace, but not configured there.
    let remote = RawEnd::new(stage.lab.server()?, stage.net.remote(PORT))?;
    let (client, conversation) = converse(stage, &remote, CLIENT)?;
    // A bare RST has no acknowledgement number.
    let ack = if flags & ACK == 0 { 0 } else { conversation.ack };
    remote.send(conversation.peer, conversation.seq, ack, flags)?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}

/// A device on the path that drops the state of idle flows and answers their next packet with a bare RST.
/// rsttrace can estimate its limit after two flows that broke and one between them that did not.
fn forget_idle_flows(stage: &Stage<'_>) -> Result<Observed> {
    const BREAKS: Duration = Duration::from_secs(4);
    const SURVIVES: Duration = Duration::from_secs(2);
    let net = stage.net;
    let device = RawEnd::new(stage.lab.server()?, net.remote(PORT))?;
    let query = |port, idle: Duration, forgotten: bool| -> Result<Observed> {
        let (client, conversation) = converse(stage, &device, port)?;
        thread::sleep(idle);
        send(&client, "SELECT 2;\n")?;
        let next = device.await_segment("the data after the idle time", |it| {
            it.from == conversation.peer && it.has(ACK | PSH) && it.seq == conversation.ack
        })?;
        let end = next.seq.wrapping_add(u32::try_from(next.payload.len())?);
        let observed = if forgotten {
            device.send(conversation.peer, conversation.seq, 0, RST)?;
            Observed::errno(wait_error(&client)?)
        } else {
            device.send(conversation.peer, conversation.seq, end, ACK)?;
            wait_acknowledged(stage.lab.client()?, PORT)?;
            Observed::default()
        };
        stage.keep(client);
        Ok(observed)
    };
    query(CLIENT + 1, BREAKS, true)?;
    query(CLIENT + 2, SURVIVES, false)?;
    query(CLIENT, BREAKS, true)
}

/// A device on the path that resets the client when a flow has been idle for its limit, without being asked.
fn abort_idle_flows(stage: &Stage<'_>) -> Result<Observed> {
    const LIMIT: Duration = Duration::from_secs(33);
    const BELOW: Duration = Duration::from_secs(20);
    let net = stage.net;
    let device = RawEnd::new(stage.lab.server()?, net.remote(PORT))?;
    let aborted = |port| -> Result<Observed> {
        let (client, conversation) = converse(stage, &device, port)?;
        thread::sleep(LIMIT);
        device.send(conversation.peer, conversation.seq, conversation.ack, RST | ACK)?;
        let observed = Observed::errno(wait_error(&client)?);
        stage.keep(client);
        Ok(observed)
    };
    aborted(CLIENT + 1)?;
    // This one is used again in time.
    let (client, conversation) = converse(stage, &device, CLIENT + 2)?;
    thread::sleep(BELOW);
    send(&client, "SELECT 2;\n")?;
    let next = device.await_segment("the data after the idle time", |it| {
        it.from == conversation.peer && it.has(ACK | PSH) && it.seq == conversation.ack
    })?;
    let end = next.seq.wrapping_add(u32::try_from(next.payload.len())?);
    device.send(conversation.peer, conversation.seq, end, ACK)?;
    wait_acknowledged(stage.lab.client()?, PORT)?;
    stage.keep(client);
    aborted(CLIENT)
}

/// The node makes a reset in the server's name, with the right sequence numbers, which it has read in passing.
fn inject(stage: &Stage<'_>, flags: u8) -> Result<Observed> {
    let net = stage.net;
    let device = RawEnd::new(stage.lab.node()?, net.server(PORT))?;
    let pair = stage.open(net)?;
    talk(&pair.client, &pair.server)?;
    let from = v4(net.client(CLIENT))?;
    let query = device.await_segment("the client's query", |it| {
        it.from == from && it.payload.starts_with(b"SELECT")
    })?;
    let answered = query.ack.wrapping_add(u32::try_from(ANSWER.len())?);
    let asked = query.seq.wrapping_add(u32::try_from(query.payload.len())?);
    let ack = if flags & ACK == 0 { 0 } else { asked };
    device.send(from, answered, ack, flags)?;
    pair.client_fails(stage)
}
