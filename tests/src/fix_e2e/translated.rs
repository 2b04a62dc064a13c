//! Translated connections and services whose owner must change a rule or a server.

use anyhow::Result;

use super::{By, FixTest, Outcome, Prediction, StartRound};
use crate::{
    actor::{accept, connect, listen, talk, try_connect},
    expect::Incident,
    guest::Need,
    lab::{Role, Topology},
    scenarios::{
        PORT, Stage,
        ipvs::{NEEDS, NEVER, serve},
        nat::postrouting,
    },
};

pub const FIX_TESTS: &[FixTest] = &[
    FixTest::new(
        "fix_no_backend",
        Topology::Routed,
        |net, round| Incident::new("no_backend", net.client(round.port), net.vip(PORT)),
        Prediction::In(Role::Node),
        By::Advice("give_it_a_server"),
        no_server,
    )
    .needs(NEEDS),
    FixTest::new(
        "fix_nat_port_exhausted",
        Topology::Routed,
        |net, round| Incident::new("nat_port_exhausted", net.client(round.port), net.server(PORT)),
        Prediction::Not("the number of ports that a NAT rule may use is not a setting"),
        By::Advice("more_nat_tuples"),
        one_port,
    )
    .needs(&[Need::Conntrack]),
];

fn no_server<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let (net, node) = (stage.net, stage.lab.node()?);
    let (service, server) = (net.vip(PORT), net.server(PORT));
    serve(stage, service, &[], NEVER)?;
    let listener = listen(stage.lab.server()?, server)?;
    Ok(Box::new(move |round| {
        let round = round.clone();
        let listener = listener.try_clone()?;
        Ok(Box::new(move || {
            if round.advice.is_some() {
                node.run(&format!("ipvsadm -a -t {service} -r {server} -m"))?;
            }
            let made = try_connect(stage.lab.client()?, net.client(round.port), service)?;
            let client = match made {
                Err(errno) => return Ok(Outcome::from(Some(errno))),
                Ok(client) => client,
            };
            let server_end = accept(&listener)?;
            talk(&client, &server_end)?;
            drop(client);
            drop(server_end);
            node.run(&format!("ipvsadm -d -t {service} -r {server}"))?;
            Ok(Outcome::default())
        }))
    }))
}

/// NAT may use one port only, and another connection has it.
fn one_port<'a>(stage: &'a Stage<'a>) -> Result<StartRound<'a>> {
    let (net, at) = (stage.net, stage.lab.client()?);
    at.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    Ok(Box::new(move |round| {
        // Removes the entries and the rule of the previous round.
        let node = stage.lab.node()?;
        node.nft("table ip nat {}; delete table ip nat")?;
        node.run("conntrack -F")?;
        let ports = if round.advice.is_some() { "1024-65535 fully-random" } else { "50000-50000" };
        postrouting(stage, &format!("masquerade to :{ports}"))?;
        let holder = connect(at, net.client(round.port + 1), net.server(PORT))?;
        stage.keep(accept(&listener)?);
        let (port, listener) = (round.port, listener.try_clone()?);
        Ok(Box::new(move || {
            let made = try_connect(at, net.client(port), net.server(PORT))?;
            stage.keep(holder);
            let client = match made {
                Err(errno) => return Ok(Outcome::from(Some(errno))),
                Ok(client) => client,
            };
            let server = accept(&listener)?;
            talk(&client, &server)?;
            stage.keep(client);
            stage.keep(server);
            Ok(Outcome::default())
        }))
    }))
}
