//! Somebody decided that the connection shall end.

use anyhow::Result;

use super::{CLIENT, PORT, Scenario, Stage, Witness};
use crate::actor::send;
use crate::expect::{Expect, Incident};
use crate::lab::{Net, Topology};

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
    Scenario::new("socket_destroyed", Topology::Direct, |net| Expect::one(destroyed(net)), destroy),
];

fn rejected(net: Net) -> Incident {
    Incident::new("firewall_reject", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("netfilter")
}

/// The program on the server gets ECONNABORTED, the client ECONNRESET; either is the incident's.
fn destroyed(net: Net) -> Incident {
    Incident::new("socket_destroyed", net.client(CLIENT), net.server(PORT))
        .observed()
        .errno(&["ECONNRESET", "ECONNABORTED"])
        .origin("local_socket")
}

fn reject_by_nft(stage: &Stage<'_>, net: Net) -> Result<Witness> {
    let pair = stage.open_and_talk(net)?;
    stage.lab.node()?.nft(&format!(
        "table inet firewall {{
            chain forward {{
                type filter hook forward priority 0;
                tcp dport {PORT} reject with tcp reset;
            }}
        }}"
    ))?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn reject_by_iptables(stage: &Stage<'_>) -> Result<Witness> {
    let pair = stage.open_and_talk(stage.net)?;
    let rule = format!("-p tcp --dport {PORT} -j REJECT --reject-with tcp-reset");
    stage.lab.node()?.run(&format!("iptables -I FORWARD {rule}"))?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn destroy(stage: &Stage<'_>) -> Result<Witness> {
    let (pair, client) = (stage.open_and_talk(stage.net)?, stage.net.client(CLIENT));
    stage.lab.server()?.run(&format!("ss -K dst {} dport = {}", client.ip(), client.port()))?;
    pair.client_fails(stage)
}
