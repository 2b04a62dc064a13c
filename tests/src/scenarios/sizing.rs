//! The measured memory of table entries, which `rsttrace plan` must print correctly on every kernel.

use std::{cell::Cell, fs, net::UdpSocket};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Observed, Scenario, Stage, TracerUse};
use crate::{
    actor::{PATIENCE, wait_until},
    expect::Expect,
    guest::Need,
    lab::Topology,
    netns::Namespace,
    tools,
};

/// These scenarios are not about incidents, so no tracer is started.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "plan_memory_conntrack",
        Topology::Direct,
        |_| Expect::nothing(),
        |stage| measure(stage, tracked, "conntrack_entry_bytes"),
    )
    .needs(&[Need::Conntrack])
    .tracer(TracerUse::Late),
    Scenario::new(
        "plan_memory_ipvs",
        Topology::Direct,
        |_| Expect::nothing(),
        |stage| measure(stage, balanced, "ipvs_entry_bytes"),
    )
    .needs(&[Need::Ipvs])
    .tracer(TracerUse::Late),
];

/// The number of flows: some 20 MB of entries, compared to which other allocations of an idle guest are negligible.
const FLOWS: u16 = 50_000;

/// The memory of kernel objects that cannot be reclaimed, in bytes.
fn unreclaimable() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let kib: u64 = line.context("no SUnreclaim")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// As [`unreclaimable`], after the memory of other scenarios has been freed: namespaces end in the background.
fn settled() -> Result<u64> {
    const READINGS: u32 = 10;
    let (last, calm) = (Cell::new(unreclaimable()?), Cell::new(0));
    wait_until(PATIENCE, "the end of other namespaces", || {
        let now = unreclaimable()?;
        let falls = now + 65_536 < last.replace(now);
        calm.set(if falls { 0 } else { calm.get() + 1 });
        Ok(calm.get() >= READINGS)
    })?;
    Ok(last.get())
}

/// Fills a table and compares the growth of the kernel's memory with the plan's figure.
fn measure(
    stage: &Stage<'_>,
    fill: fn(&Namespace) -> Result<u64>,
    figure: &str,
) -> Result<Observed> {
    let at = stage.lab.client()?;
    at.run("ip link add fill0 type dummy")?;
    at.run("ip link set fill0 up")?;
    at.run("ip addr add 198.18.0.1/15 dev fill0")?;
    let before = settled()?;
    let entries = fill(at)?;
    ensure!(entries >= FLOWS.into(), "only {entries} entries");
    let measured = unreclaimable()?.saturating_sub(before) / entries;
    let planned = plan(entries)?;
    let figure = planned.pointer(&format!("/memory/{figure}")).and_then(Value::as_u64);
    let figure = figure.with_context(|| format!("the figure is missing in {planned}"))?;
    ensure!(
        figure.abs_diff(measured) * 10 <= measured,
        "an entry takes {measured} B, but the plan prints {figure} B"
    );
    Ok(Observed::default())
}

/// The output of `rsttrace plan` for this machine.
fn plan(connections: u64) -> Result<Value> {
    let line = format!("rsttrace plan --connections {connections} -o json");
    let printed = tools::run(None, &line, "")?;
    serde_json::from_str(&printed).context("the plan is not JSON")
}

/// Masquerading adds the extension block to each entry, as on any node.
fn tracked(at: &Namespace) -> Result<u64> {
    at.nft(
        "table ip fill {
            chain out { type nat hook postrouting priority 100; masquerade; }
        }",
    )?;
    at.sysctl("net/netfilter/nf_conntrack_udp_timeout", 600)?;
    at.enter(|| {
        let socket = UdpSocket::bind("198.18.0.1:9").context("bind")?;
        for port in 1..=FLOWS {
            socket.send_to(b"x", ("198.18.0.2", port)).context("send")?;
        }
        Ok(())
    })?;
    at.sysctl_value("net/netfilter/nf_conntrack_count")
}

/// IPVS distinguishes these connections by the client's port.
fn balanced(at: &Namespace) -> Result<u64> {
    const FIRST: u16 = 10_000;
    at.run("ip link add vip0 type dummy")?;
    at.run("ip link set vip0 up")?;
    at.run("ip addr add 198.51.100.1/32 dev vip0")?;
    at.run("ipvsadm -A -u 198.51.100.1:53 -s rr")?;
    at.run("ipvsadm -a -u 198.51.100.1:53 -r 198.18.0.2:53 -m")?;
    at.enter(|| {
        for port in FIRST..FIRST + FLOWS {
            let socket = UdpSocket::bind(("198.18.0.1", port)).context("bind")?;
            socket.send_to(b"x", "198.51.100.1:53").context("send")?;
        }
        Ok(())
    })?;
    let table = at.enter(|| crate::netns::proc_net("ip_vs_conn"))?;
    // The first line is a heading.
    Ok(table.lines().skip(1).count() as u64)
}
