//! `rsttrace watch`: its timers must agree with those that ipvsadm and conntrack print before and after.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    CLIENT, Observed, PORT, Scenario, Stage, TracerUse,
    ipvs::{Connection, NEEDS, NEVER, TIMEOUT},
};
use crate::{actor::keepalive, expect::Expect, lab::Topology, netns::Namespace, tools};

/// These scenarios are not about incidents, so no tracer is started.
const fn watching(name: &'static str, provoke: fn(&Stage<'_>) -> Result<Observed>) -> Scenario {
    Scenario::new(name, Topology::Routed, |_| Expect::nothing(), provoke)
        .needs(NEEDS)
        .tracer(TracerUse::Late)
}

pub const SCENARIOS: &[Scenario] = &[
    watching("watch_agrees_with_tools", agrees_with_tools),
    watching("watch_sees_expiry", sees_expiry),
];

/// The idle time after which the client's first keepalive is sent.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// The output of `rsttrace watch` for the scenario's connection.
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

/// The remaining seconds in `ipvsadm -Lnc`: `TCP 09:57  ESTABLISHED 10.12.1.2:40001 …`.
fn by_ipvsadm(node: &Namespace, client: &str) -> Result<u64> {
    let table = node.run("ipvsadm -Lnc")?;
    let line = table.lines().find(|line| line.contains(client));
    let expire = line.and_then(|line| line.split_whitespace().nth(1));
    let (minutes, seconds) =
        expire.and_then(|it| it.split_once(':')).with_context(|| format!("no entry in {table}"))?;
    Ok(minutes.parse::<u64>()? * 60 + seconds.parse::<u64>()?)
}

/// The remaining seconds in `conntrack -L`: `tcp 6 431998 ESTABLISHED src=…`.
fn by_conntrack(node: &Namespace) -> Result<u64> {
    let list = node.run(&format!("conntrack -L -p tcp --orig-port-src {CLIENT}"))?;
    let left = list.split_whitespace().nth(2).with_context(|| format!("no entry in {list}"))?;
    left.parse().with_context(|| format!("invalid number of seconds {left:?}"))
}

/// No packet passes during the test, so every timer only decreases.
fn agrees_with_tools(stage: &Stage<'_>) -> Result<Observed> {
    let connection = Connection::tracked(stage, NEVER)?;
    keepalive(&connection.client, KEEPALIVE, Duration::from_secs(30), 3)?;
    let node = stage.lab.node()?;
    let client = stage.net.client(CLIENT).to_string();
    let before = (by_ipvsadm(node, &client)?, by_conntrack(node)?);
    let lines = watch(stage, "--count 3")?;
    let after = (by_ipvsadm(node, &client)?, by_conntrack(node)?);
    ensure!(lines.len() == 3, "{} lines instead of three", lines.len());
    for line in &lines {
        for (what, pointer, first, last) in [
            ("IPVS", "/ipvs/0/left_s", before.0, after.0),
            ("conntrack", "/conntrack/0/left_s", before.1, after.1),
        ] {
            let left = number(line, pointer)?;
            // All are whole seconds, but each tool rounds differently.
            ensure!(
                left <= first + 1 && left + 1 >= last,
                "{what}: {left} s left, but the tools print {first} s before and {last} s after"
            );
        }
        let ends = line.pointer("/sockets").and_then(Value::as_array).map_or(0, Vec::len);
        ensure!(ends == 2, "{ends} sockets in {line}");
        let timer = number(line, "/sockets/0/timer/left_ms")
            .or_else(|_| number(line, "/sockets/1/timer/left_ms"))?;
        ensure!(u128::from(timer) <= KEEPALIVE.as_millis(), "the keepalive is sent in {timer} ms");
        let level = line.pointer("/outlook/level").and_then(Value::as_str);
        ensure!(level == Some("fine"), "the outlook is not fine: {line}");
    }
    connection.keep(stage);
    Ok(Observed::default())
}

/// `rsttrace watch` reports that the entry has expired, and from then on that the connection is broken. So does a
/// second `rsttrace watch` that is started later.
fn sees_expiry(stage: &Stage<'_>) -> Result<Observed> {
    let connection = Connection::tracked(stage, TIMEOUT)?;
    let lines = watch(stage, "--duration 12s")?;
    let first = lines.first().context("nothing printed")?;
    let level =
        |line: &Value| line.pointer("/outlook/level").and_then(Value::as_str).map(str::to_owned);
    ensure!(level(first).as_deref() == Some("breaks"), "at first: {first}");
    let reports_expiry = |line: &Value| {
        let ended = line.pointer("/ended").and_then(Value::as_array).into_iter().flatten();
        let mut texts = ended.filter_map(Value::as_str);
        texts.any(|it| it.starts_with("the IPVS entry") && it.contains("(expired)"))
    };
    let at = lines.iter().position(reports_expiry);
    let at = at.context("no line reports that the entry has expired")?;
    for line in &lines[at..] {
        ensure!(level(line).as_deref() == Some("breaks"), "afterwards: {line}");
    }
    // A watch that starts now has not seen the expiry.
    let late = watch(stage, "--count 1")?;
    let line = late.first().context("nothing printed")?;
    ensure!(level(line).as_deref() == Some("breaks"), "watched after the expiry: {line}");
    connection.keep(stage);
    Ok(Observed::default())
}
