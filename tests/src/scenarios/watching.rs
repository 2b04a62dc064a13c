//! `rsttrace watch`: what it counts down is what the tools of the trade show before and after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    CLIENT, PORT, Scenario, Stage, TracerUse, Witness,
    ipvs::{Connection, NEEDS, NEVER, TIMEOUT},
};
use crate::{actor::keepalive, expect::Expect, lab::Topology, netns::Namespace, tools};

/// Incidents are not what they are about: no tracer is started.
const fn watching(name: &'static str, provoke: fn(&Stage<'_>) -> Result<Witness>) -> Scenario {
    Scenario::new(name, Topology::Routed, |_| Expect::nothing(), provoke)
        .needs(NEEDS)
        .tracer(TracerUse::Late)
}

pub const SCENARIOS: &[Scenario] = &[
    watching("watch_agrees_with_tools", agrees_with_tools),
    watching("watch_sees_expiry", sees_expiry),
];

/// Seconds after which the client's first keepalive goes out.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// What `rsttrace watch` prints of the scenario's connection.
fn watch(stage: &Stage<'_>, options: &str) -> Result<Vec<Value>> {
    let (client, vip) = (stage.net.client(CLIENT), stage.net.vip(PORT));
    let line = format!("rsttrace watch {client} {vip} -o json {options}");
    let printed = tools::run(None, &line, "")?;
    let lines = printed.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().context("a line is not JSON")
}

fn number(line: &Value, pointer: &str) -> Result<u64> {
    line.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("no {pointer} in {line}"))
}

/// Seconds left by `ipvsadm -Lnc`: `TCP 09:57  ESTABLISHED 10.12.1.2:40001 …`.
fn by_ipvsadm(node: &Namespace, client: &str) -> Result<u64> {
    let table = node.run("ipvsadm -Lnc")?;
    let line = table.lines().find(|line| line.contains(client));
    let expire = line.and_then(|line| line.split_whitespace().nth(1));
    let (minutes, seconds) =
        expire.and_then(|it| it.split_once(':')).with_context(|| format!("no entry in {table}"))?;
    Ok(minutes.parse::<u64>()? * 60 + seconds.parse::<u64>()?)
}

/// Seconds left by `conntrack -L`: `tcp 6 431998 ESTABLISHED src=…`.
fn by_conntrack(node: &Namespace) -> Result<u64> {
    let list = node.run(&format!("conntrack -L -p tcp --orig-port-src {CLIENT}"))?;
    let left = list.split_whitespace().nth(2).with_context(|| format!("no entry in {list}"))?;
    left.parse().with_context(|| format!("{left} is no number"))
}

/// No packet passes meanwhile, so every timer only goes down.
fn agrees_with_tools(stage: &Stage<'_>) -> Result<Witness> {
    let connection = Connection::tracked(stage, NEVER)?;
    keepalive(&connection.client, KEEPALIVE, Duration::from_secs(30), 3)?;
    let node = stage.lab.node()?;
    let client = stage.net.client(CLIENT).to_string();
    let before = (by_ipvsadm(node, &client)?, by_conntrack(node)?);
    let lines = watch(stage, "--count 3")?;
    let after = (by_ipvsadm(node, &client)?, by_conntrack(node)?);
    ensure!(lines.len() == 3, "{} lines for three looks", lines.len());
    for line in &lines {
        for (what, pointer, first, last) in [
            ("IPVS", "/ipvs/0/left_s", before.0, after.0),
            ("conntrack", "/conntrack/0/left_s", before.1, after.1),
        ] {
            let left = number(line, pointer)?;
            // All are whole seconds, rounded by different hands.
            ensure!(
                left <= first + 1 && left + 1 >= last,
                "{what}: {left} s left, and the tools say {first} s before and {last} s after"
            );
        }
        let ends = line.pointer("/sockets").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(ends == 2, "{ends} sockets in {line}");
        let timer = number(line, "/sockets/0/timer/left_ms")
            .or_else(|_| number(line, "/sockets/1/timer/left_ms"))?;
        ensure!(u128::from(timer) <= KEEPALIVE.as_millis(), "the keepalive goes out in {timer} ms");
        let level = line.pointer("/outlook/level").and_then(Value::as_str);
        ensure!(level == Some("fine"), "the outlook is not fine: {line}");
    }
    connection.keep(stage);
    Ok(Witness::default())
}

/// It says that the entry has expired, and from then on that the connection is broken; so does a second
/// watcher, who comes later.
fn sees_expiry(stage: &Stage<'_>) -> Result<Witness> {
    let connection = Connection::tracked(stage, TIMEOUT)?;
    let lines = watch(stage, "--duration 12s")?;
    let first = lines.first().context("nothing printed")?;
    let level =
        |line: &Value| line.pointer("/outlook/level").and_then(Value::as_str).map(str::to_owned);
    ensure!(level(first).as_deref() == Some("breaks"), "at first: {first}");
    let told = |line: &Value| {
        let ended = line.pointer("/ended").and_then(Value::as_array).into_iter().flatten();
        let mut texts = ended.filter_map(Value::as_str);
        texts.any(|it| it.starts_with("the IPVS entry") && it.contains("it expired"))
    };
    let at = lines.iter().position(told);
    let at = at.context("it did not say that the entry has expired")?;
    for line in &lines[at..] {
        ensure!(level(line).as_deref() == Some("breaks"), "afterwards: {line}");
    }
    // Whoever looks only now has not seen it go.
    let late = watch(stage, "--count 1")?;
    let line = late.first().context("nothing printed")?;
    ensure!(level(line).as_deref() == Some("breaks"), "looked at too late: {line}");
    connection.keep(stage);
    Ok(Witness::default())
}
