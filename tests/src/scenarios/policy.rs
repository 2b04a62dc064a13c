//! Connections that an operator or a policy ends.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{CLIENT, Observed, PORT, Pair, Scenario, Stage, conntrack::translate};
use crate::{
    actor::{accept, connect, listen, send, talk, try_connect, wait_retransmissions},
    expect::{Expect, Incident},
    guest::Need,
    lab::{Net, Topology},
    rawtcp::{RST, RawEnd, SYN, v4},
};

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "firewall_reject",
        Topology::Routed,
        |net| Expect::one(rejected(net)),
        |stage| reject_by_nft(stage, stage.net),
    ),
    Scenario::new(
        "firewall_reject_v6",
        Topology::Routed,
        |net| Expect::one(rejected(net.v6())),
        |stage| reject_by_nft(stage, stage.net.v6()),
    ),
    Scenario::new(
        "firewall_reject_iptables",
        Topology::Routed,
        |net| Expect::one(rejected(net)),
        reject_by_iptables,
    ),
    Scenario::new(
        "firewall_reject_icmp",
        Topology::Routed,
        |net| Expect::one(refused(net)),
        |stage| refuse_by_nft(stage, stage.net),
    ),
    Scenario::new(
        "firewall_reject_icmp_v6",
        Topology::Routed,
        |net| Expect::one(refused(net.v6())),
        |stage| refuse_by_nft(stage, stage.net.v6()),
    ),
    // An established connection treats an ICMP error as temporary until its retransmissions are exhausted.
    Scenario::new(
        "firewall_reject_icmp_midstream",
        Topology::Routed,
        |net| Expect::one(prohibited(net)),
        prohibit_midstream,
    ),
    // The rule matches the packets after DNAT; their sender does not know the translated address.
    Scenario::new(
        "firewall_reject_icmp_behind_dnat",
        Topology::Routed,
        |net| Expect::one(refused_behind_dnat(net)),
        refuse_behind_dnat,
    )
    .needs(&[Need::Conntrack]),
    Scenario::new(
        "firewall_reject_icmp_midstream_behind_dnat",
        Topology::Routed,
        |net| Expect::one(prohibited_behind_dnat(net)),
        prohibit_midstream_behind_dnat,
    )
    .needs(&[Need::Conntrack]),
    // The peer has not answered for a while before the rule is added: rsttrace names the rule, but not as the cause.
    Scenario::new(
        "retransmission_timeout_before_the_rule",
        Topology::Routed,
        |net| Expect::one(dead_before_the_rule(net)),
        reject_a_dead_connection,
    ),
    // The rule is for another port; this one has no listener.
    Scenario::new(
        "near_miss_reject_rule_of_another_port",
        Topology::Routed,
        |net| Expect::one(connection_refused(net)),
        refuse_beside_a_rule,
    ),
    // Nothing is sent in answer to a reset.
    Scenario::new(
        "near_miss_reset_meets_a_reject_rule",
        Topology::Routed,
        |_| Expect::nothing(),
        |stage| scan_rejected(stage, RST),
    ),
    Scenario::new(
        "handshake_rejected_by_a_rule",
        Topology::Routed,
        |net| Expect::one(scanned(net)),
        |stage| scan_rejected(stage, SYN),
    ),
    Scenario::direct("socket_destroyed", |net| Expect::one(destroyed(net)), destroy),
];

fn rejected(net: Net) -> Incident {
    Incident::new("firewall_reject", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("netfilter")
}

/// The program on the server gets ECONNABORTED, the client ECONNRESET; the incident may have either error.
fn destroyed(net: Net) -> Incident {
    Incident::new("socket_destroyed", net.client(CLIENT), net.server(PORT))
        .observed()
        .errno(&["ECONNRESET", "ECONNABORTED"])
        .origin("local_socket")
}

fn refused(net: Net) -> Incident {
    refused_at(net, net.server(PORT))
}

fn refused_at(net: Net, called: SocketAddr) -> Incident {
    Incident::new("firewall_reject", net.client(CLIENT), called)
        .observed()
        .victim("source", "ECONNREFUSED")
        .origin("none")
        .evidence("ICMP")
        .first_fix("change_the_rule", "firewall")
}

fn refused_behind_dnat(net: Net) -> Incident {
    refused_at(net, net.vip(PORT)).nat(net.server(PORT))
}

fn prohibited_behind_dnat(net: Net) -> Incident {
    refused_behind_dnat(net).victim("source", "EHOSTUNREACH").action("timeout")
}

fn dead_before_the_rule(net: Net) -> Incident {
    Incident::new("retransmission_timeout", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNREFUSED")
        .origin("none")
        .evidence("nftables reject rule")
        .first_fix("change_the_rule", "firewall")
}

fn prohibited(net: Net) -> Incident {
    refused(net).victim("source", "EHOSTUNREACH").action("timeout")
}

fn connection_refused(net: Net) -> Incident {
    Incident::new("connection_refused", net.client(CLIENT), net.server(PORT))
        .victim("source", "ECONNREFUSED")
        .origin("local_stack")
}

fn scanned(net: Net) -> Incident {
    Incident::new("handshake_rejected", net.client(CLIENT), net.server(PORT)).origin("netfilter")
}

/// Segments that belong to no connection meet a rule that rejects with a reset.
fn scan_rejected(stage: &Stage<'_>, flags: u8) -> Result<Observed> {
    let net = stage.net;
    let scanner = RawEnd::new(stage.lab.client()?, net.client(CLIENT))?;
    let passed = RawEnd::new(stage.lab.node()?, net.client(CLIENT))?;
    let from = v4(net.client(CLIENT))?;
    reject(stage, PORT, "with tcp reset")?;
    scanner.send(v4(net.server(PORT))?, 1, 0, flags)?;
    passed.await_segment("the scan", |it| it.from == from)?;
    if flags != RST {
        scanner.await_segment("the RST", |it| it.has(RST))?;
    }
    Ok(Observed::default())
}

/// Adds a rule on the node for connections to a port; `reject` without `with` sends ICMP port unreachable.
fn reject(stage: &Stage<'_>, port: u16, with: &str) -> Result<()> {
    stage.lab.node()?.nft(&format!(
        "table inet firewall {{
            chain forward {{
                type filter hook forward priority 0;
                tcp dport {port} reject {with};
            }}
        }}"
    ))
}

fn refuse(stage: &Stage<'_>, net: Net) -> Result<Observed> {
    let refused = try_connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?.err();
    Ok(Observed::errno(refused.context("the connection was made despite the rule")?))
}

fn refuse_by_nft(stage: &Stage<'_>, net: Net) -> Result<Observed> {
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    reject(stage, PORT, "")?;
    refuse(stage, net)
}

fn refuse_beside_a_rule(stage: &Stage<'_>) -> Result<Observed> {
    reject(stage, PORT + 1, "")?;
    refuse(stage, stage.net)
}

fn prohibit_midstream(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    let pair = stage.open_and_talk(stage.net)?;
    reject(stage, PORT, "with icmpx type admin-prohibited")?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn refuse_behind_dnat(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    translate(stage, &net.server(PORT).to_string())?;
    stage.keep(listen(stage.lab.server()?, net.server(PORT))?);
    reject(stage, PORT, "")?;
    let refused = try_connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?.err();
    Ok(Observed::errno(refused.context("the connection was made despite the rule")?))
}

fn prohibit_midstream_behind_dnat(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    translate(stage, &net.server(PORT).to_string())?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    stage.keep(listener);
    talk(&client, &server)?;
    reject(stage, PORT, "with icmpx type admin-prohibited")?;
    send(&client, "SELECT 2;\n")?;
    Pair { client, server }.client_fails(stage)
}

/// The server has not answered three retransmissions when the rule is added.
fn reject_a_dead_connection(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 4)?;
    let pair = stage.open_and_talk(stage.net)?;
    stage.cut_path()?;
    send(&pair.client, "SELECT 2;\n")?;
    wait_retransmissions(stage.lab.client()?, PORT, 3)?;
    reject(stage, PORT, "")?;
    pair.client_fails(stage)
}

fn reject_by_nft(stage: &Stage<'_>, net: Net) -> Result<Observed> {
    let pair = stage.open_and_talk(net)?;
    reject(stage, PORT, "with tcp reset")?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn reject_by_iptables(stage: &Stage<'_>) -> Result<Observed> {
    let pair = stage.open_and_talk(stage.net)?;
    let rule = format!("-p tcp --dport {PORT} -j REJECT --reject-with tcp-reset");
    stage.lab.node()?.run(&format!("iptables -I FORWARD {rule}"))?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn destroy(stage: &Stage<'_>) -> Result<Observed> {
    let (pair, client) = (stage.open_and_talk(stage.net)?, stage.net.client(CLIENT));
    stage.lab.server()?.run(&format!("ss -K dst {} dport = {}", client.ip(), client.port()))?;
    pair.client_fails(stage)
}
