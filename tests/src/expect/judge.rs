//! Compares the printed incidents with the expected ones. Every failure is one readable line.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Expect, Incident, Owner,
    shape::{self, dotted, list, same, text},
};
use crate::{
    lab::{Net, Role},
    scenarios::Observed,
    tracer::Record,
};

/// Facts about a run that do not come from the tracer's output.
pub struct Facts<'a> {
    /// The kernel's series, such as `6.1`.
    pub series: &'a str,
    pub observed: &'a Observed,
    /// The inode of each namespace.
    pub namespaces: &'a [(Role, u64)],
}

/// The result of a scenario that passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Cause and confidence of each incident; empty if no incident was expected. The cause `unknown` has the
    /// confidence `none`.
    pub given: Vec<(String, String)>,
    /// Where the kernel allows only a weaker verdict: the full cause, and the kernel fact.
    pub facts: Vec<(&'static str, &'static str)>,
}

impl Verdict {
    /// Cause and confidence of the first incident, or `none` for both.
    pub fn first(&self) -> (&str, &str) {
        self.given.first().map_or(("none", "none"), |(cause, confidence)| (cause, confidence))
    }
}

/// Whether an incident is about the addresses of one scenario.
pub fn belongs(record: &Record, net: &Net) -> bool {
    record.is("rsttrace.incident")
        && ["/source/ip", "/destination/ip", "/source/nat/ip", "/destination/nat/ip"]
            .iter()
            .filter_map(|path| text(&record.value, path).ok()?.parse::<IpAddr>().ok())
            .any(|ip| net.owns(ip))
}

/// `records` are all incidents that belong to the scenario, in the order of their arrival.
pub fn judge(expect: &Expect, records: &[Record], facts: &Facts<'_>) -> Result<Verdict> {
    for record in records {
        shape::check(record).with_context(|| describe(&record.value))?;
    }
    let (follows, firsts): (Vec<_>, Vec<_>) = records
        .iter()
        .map(|record| &record.value)
        .partition(|value| value.pointer("/rsttrace/follows").is_some());

    let pairs =
        if expect.in_any_order { by_source(expect, &firsts)? } else { in_order(expect, &firsts)? };
    let mut kernel_facts = Vec::new();
    for (wanted, found) in pairs {
        let (on_series, fact) = wanted.for_series(facts.series);
        kernel_facts.extend(fact.map(|fact| (wanted.causes[0], fact)));
        check_incident(on_series, found, facts).with_context(|| describe(found))?;
    }
    for follow in follows {
        check_follow(follow, &firsts).with_context(|| format!("follow-up {}", describe(follow)))?;
    }
    let field = |value: &Value, path: &str| text(value, path).unwrap_or("none").to_owned();
    Ok(Verdict {
        given: firsts
            .iter()
            .map(|it| (field(it, "/rsttrace/cause"), field(it, "/rsttrace/confidence")))
            .collect(),
        facts: kernel_facts,
    })
}

/// Each expected incident with the one that was found.
type Pairs<'a> = Vec<(&'a Incident, &'a Value)>;

fn in_order<'a>(expect: &'a Expect, firsts: &[&'a Value]) -> Result<Pairs<'a>> {
    if firsts.len() != expect.incidents.len() {
        let found = match firsts {
            [] => "nothing was printed".to_owned(),
            some => some.iter().map(|it| describe(it)).collect::<Vec<_>>().join("; "),
        };
        bail!("{} incidents, not {}: {found}", firsts.len(), expect.incidents.len());
    }
    Ok(expect.incidents.iter().zip(firsts.iter().copied()).collect())
}

/// Every expected incident exactly once, and no other.
fn by_source<'a>(expect: &'a Expect, firsts: &[&'a Value]) -> Result<Pairs<'a>> {
    let is_of =
        |wanted: &Incident, found: &Value| endpoint(found, "/source", Some(wanted.source)).is_ok();
    for &found in firsts {
        let expected = expect.incidents.iter().any(|wanted| is_of(wanted, found));
        ensure!(expected, "unexpected incident: {}", describe(found));
    }
    let mut pairs = Vec::new();
    for wanted in &expect.incidents {
        let mut of = firsts.iter().filter(|found| is_of(wanted, found));
        let what = || format!("{} {} -> {}", wanted.causes[0], wanted.source, wanted.destination);
        let found = of.next().with_context(|| format!("no incident for {}", what()))?;
        if let Some(again) = of.next() {
            bail!("{} was reported twice: {}; {}", what(), describe(found), describe(again));
        }
        pairs.push((wanted, *found));
    }
    Ok(pairs)
}

fn check_incident(wanted: &Incident, found: &Value, facts: &Facts<'_>) -> Result<()> {
    one_of(found, "/rsttrace/cause", &wanted.causes)?;
    endpoint(found, "/source", facts.observed.source.or(Some(wanted.source)))?;
    endpoint(found, "/destination", Some(wanted.destination))?;
    // The back end that a scheduler chose is known only after the run.
    let nat = facts.observed.nat.filter(|_| wanted.nat.is_some()).or(wanted.nat);
    if nat.is_some() {
        endpoint(found, "/destination/nat", nat)?;
    }
    if wanted.untranslated {
        ensure!(found.pointer("/destination/nat").is_none(), "destination.nat is there");
    }
    one_of(found, "/rsttrace/confidence", &wanted.confidences)?;
    one_of(found, "/error/code", &wanted.errnos)?;
    one_of(found, "/rsttrace/victim", &wanted.victims)?;
    for (path, claim) in [("/event/action", wanted.action), ("/rsttrace/rst/origin", wanted.origin)]
    {
        if let Some(claim) = claim {
            same(found, path, claim)?;
        }
    }
    if wanted.idle {
        check_idle(found, facts.observed.idle)?;
    }
    if let Some(enabled) = wanted.keepalive {
        equal(found, "/rsttrace/keepalive/enabled", Value::from(enabled))?;
    }
    if let Some(seconds) = wanted.ipvs_timeout {
        equal(found, "/rsttrace/ipvs/timeout_s", Value::from(seconds))?;
    }
    check_netns(found, &wanted.netns, facts.namespaces)?;
    if let Some((id, owner)) = wanted.first_fix {
        let first = list(found, "fixes").first().context("no fixes")?;
        same(first, "/id", id).context("the first fix")?;
        same(first, "/owner", owner).with_context(|| format!("the fix {id}"))?;
    }
    for (index, owner) in wanted.owners.iter().enumerate() {
        check_owner(found, index == 0, owner, &facts.observed.pids)?;
    }
    if let Some(word) = wanted.evidence {
        let mentioned = list(found, "evidence")
            .iter()
            .any(|it| text(it, "/summary").is_ok_and(|it| it.contains(word)));
        ensure!(mentioned, "no evidence mentions {word:?}");
    }
    Ok(())
}

fn check_owner(found: &Value, first: bool, owner: &Owner, pids: &[(&str, u32)]) -> Result<()> {
    let pid = pids.iter().find_map(|(end, pid)| (*end == owner.end).then_some(*pid));
    let pid = pid.context("the scenario did not record the process at this end")?;
    let at = if first { "" } else { "/rsttrace/peer" };
    if first {
        same(found, "/rsttrace/process_of", owner.end)?;
    }
    equal(found, &format!("{at}/process/pid"), Value::from(pid))
        .with_context(|| format!("the process at the {}", owner.end))?;
    same(
        found,
        if first { "/rsttrace/process_by" } else { "/rsttrace/peer/process_by" },
        owner.by,
    )?;
    if let Some(pod) = owner.pod {
        let paths = ["k8s/pod/uid", "container/id", "k8s/namespace/name", "k8s/pod/name"];
        for (path, wanted) in paths.iter().zip(pod) {
            same(found, &format!("{at}/{path}"), wanted)?;
        }
    }
    Ok(())
}

fn one_of(found: &Value, path: &str, allowed: &[&str]) -> Result<()> {
    if allowed.is_empty() {
        return Ok(());
    }
    let value = text(found, path)?;
    ensure!(allowed.contains(&value), "{} is {value}, not {}", dotted(path), allowed.join(" or "));
    Ok(())
}

/// Numbers compare by value, so that 4 equals 4.0.
fn equal(found: &Value, path: &str, wanted: Value) -> Result<()> {
    let value = found.pointer(path).with_context(|| format!("no {}", dotted(path)))?;
    let equal =
        *value == wanted || value.as_f64().is_some_and(|number| Some(number) == wanted.as_f64());
    ensure!(equal, "{} is {value}, not {wanted}", dotted(path));
    Ok(())
}

fn endpoint(found: &Value, path: &str, wanted: Option<SocketAddr>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let ip = text(found, &format!("{path}/ip"))?;
    let port = found
        .pointer(&format!("{path}/port"))
        .with_context(|| format!("no {}.port", dotted(path)))?;
    let same_ip = ip.parse() == Ok(wanted.ip());
    ensure!(
        same_ip && *port == wanted.port(),
        "{} is {ip} port {port}, not {wanted}",
        dotted(path)
    );
    Ok(())
}

/// Within 5 % or 1 s of what the scenario measured.
fn check_idle(found: &Value, measured: Option<Duration>) -> Result<()> {
    let measured = measured.context("the scenario did not measure the idle time")?.as_secs_f64();
    let idle =
        found.pointer("/rsttrace/idle_s").and_then(Value::as_f64).context("no rsttrace.idle_s")?;
    let tolerance = f64::max(measured * 0.05, 1.0);
    ensure!(
        (idle - measured).abs() <= tolerance,
        "rsttrace.idle_s is {idle:.2}, not {measured:.2}"
    );
    Ok(())
}

fn check_netns(found: &Value, allowed: &[Role], namespaces: &[(Role, u64)]) -> Result<()> {
    if allowed.is_empty() {
        return Ok(());
    }
    let inode =
        found.pointer("/rsttrace/netns").and_then(Value::as_u64).context("no rsttrace.netns")?;
    let role = namespaces.iter().find_map(|(role, number)| (*number == inode).then_some(role));
    let role =
        role.with_context(|| format!("rsttrace.netns {inode} is not a namespace of the scenario"))?;
    ensure!(allowed.contains(role), "rsttrace.netns is that of the {role:?}, not of {allowed:?}");
    Ok(())
}

/// A later error of the same connection repeats the first verdict.
fn check_follow(follow: &Value, firsts: &[&Value]) -> Result<()> {
    let id = text(follow, "/rsttrace/follows")?;
    let first = firsts.iter().find(|first| first["event_id"] == id);
    let first = first.with_context(|| format!("follows {id}, which was not printed"))?;
    same(follow, "/rsttrace/cause", text(first, "/rsttrace/cause")?)
}

/// `ipvs_idle_expired 10.1.1.2:40001 -> 10.1.100.1:3306`.
fn describe(incident: &Value) -> String {
    let end = |side: &str| {
        let ip = incident[side]["ip"].as_str().unwrap_or("?");
        format!("{ip}:{}", incident[side]["port"])
    };
    let cause = incident["rsttrace"]["cause"].as_str().unwrap_or("no cause");
    format!("{cause} {} -> {}", end("source"), end("destination"))
}
