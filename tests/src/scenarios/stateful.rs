//! Connections without NAT, through rules that test the conntrack state.

use std::{thread, time::Instant};

use anyhow::Result;

use super::{
    CLIENT, Observed, PORT, Pair, Scenario, Stage,
    conntrack::{NEEDS, SLACK, TIMEOUT, delete_entry, shorten_timeout},
};
use crate::{
    actor::{send, wait_acknowledged},
    expect::{Expect, Incident},
    lab::{Net, Topology},
};

pub const SCENARIOS: &[Scenario] = &[
    stateful("stateful_rule_rejects_expired", |net| Expect::one(expired(net)), reject_expired),
    stateful("stateful_rule_drops_deleted", |net| Expect::one(deleted(net)), drop_deleted),
    // The entry expired too, but no rule needs it.
    stateful(
        "near_miss_entry_expired_that_no_rule_needs",
        |net| Expect::one(rejected(net)),
        reject_by_a_new_rule,
    ),
    stateful(
        "near_miss_stateful_rule_with_entry",
        |net| Expect::one(rejected(net)),
        reject_tracked,
    ),
    stateful("retransmission_timeout_by_a_drop_rule", |net| Expect::one(dropped(net)), drop_all),
];

const fn stateful(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::new(name, Topology::Routed, expect, provoke).needs(NEEDS)
}

fn expired(net: Net) -> Incident {
    Incident::new("conntrack_idle_expired", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("netfilter")
        .evidence("for which conntrack had no entry")
}

fn deleted(net: Net) -> Incident {
    Incident::new("conntrack_deleted", net.client(CLIENT), net.server(PORT))
        .confidence(&["correlated"])
        .victim("source", "ETIMEDOUT")
        .action("timeout")
        .origin("none")
        .evidence("without an answer")
}

fn rejected(net: Net) -> Incident {
    Incident::new("firewall_reject", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("netfilter")
}

fn dropped(net: Net) -> Incident {
    Incident::new("retransmission_timeout", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ETIMEDOUT")
        .action("timeout")
        .origin("none")
        .evidence("netfilter")
        .first_fix("change_the_drop_rule", "firewall")
}

/// Lets new connections and those with an entry pass; what happens to other packets is `otherwise`.
fn filter(stage: &Stage<'_>, otherwise: &str) -> Result<()> {
    stage.lab.node()?.nft(&format!(
        "table inet firewall {{
            chain forward {{
                type filter hook forward priority 0;
                ct state established,related accept
                tcp dport {PORT} tcp flags & (syn | ack) == syn accept
                meta l4proto tcp {otherwise}
            }}
        }}"
    ))
}

fn outwait(since: Instant) {
    thread::sleep((since + TIMEOUT + SLACK).saturating_duration_since(Instant::now()));
}

fn reject_expired(stage: &Stage<'_>) -> Result<Observed> {
    shorten_timeout(stage)?;
    filter(stage, "reject with tcp reset")?;
    let pair = stage.open_and_talk(stage.net)?;
    outwait(Instant::now());
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn drop_deleted(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    filter(stage, "drop")?;
    let pair = stage.open_and_talk(stage.net)?;
    delete_entry(stage)?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

/// A rule for the port of the server, whatever the state.
fn stop(stage: &Stage<'_>, how: &str) -> Result<()> {
    stage.lab.node()?.nft(&format!(
        "table inet stopper {{
            chain forward {{
                type filter hook forward priority -10;
                tcp dport {PORT} {how}
            }}
        }}"
    ))
}

/// NAT makes conntrack track the connection, and no filter rule tests its state.
fn reject_by_a_new_rule(stage: &Stage<'_>) -> Result<Observed> {
    shorten_timeout(stage)?;
    stage.lab.node()?.nft(
        "table ip nat {
 chain post {
 type nat hook postrouting priority 100;
 }
}",
    )?;
    let pair: Pair = stage.open_and_talk(stage.net)?;
    outwait(Instant::now());
    stop(stage, "reject with tcp reset")?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

/// The rules test the state, but the packet that is rejected has its entry.
fn reject_tracked(stage: &Stage<'_>) -> Result<Observed> {
    filter(stage, "reject with tcp reset")?;
    let pair = stage.open_and_talk(stage.net)?;
    wait_acknowledged(stage.lab.server()?, CLIENT)?;
    stop(stage, "reject with tcp reset")?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn drop_all(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    let pair = stage.open_and_talk(stage.net)?;
    stop(stage, "drop")?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}
