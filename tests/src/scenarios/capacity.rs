//! Limits that all namespaces share, so these scenarios run alone: the conntrack table, and TCP orphans.

use std::{fs, net::TcpStream};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

use super::{CLIENT, Observed, PORT, Scenario, Stage, TracerUse};
use crate::{
    actor::{
        accept, connect, listen, send, talk, try_connect, wait_acknowledged, wait_error,
        wait_forgotten,
    },
    expect::{Expect, Incident},
    guest::Need,
    lab::{Net, Topology},
    netns::Namespace,
};

/// The first client port of the connections that fill the table.
pub const FILLERS: u16 = 50_001;
pub const COUNT: &str = "net/netfilter/nf_conntrack_count";
/// The number of free entries below the limit that a scenario sets.
pub const ROOM: u64 = 8;

pub const SCENARIOS: &[Scenario] = &[
    full_table(
        "conntrack_table_full",
        |net| Expect::one(dropped(net)).actors_see(TIMED_OUT),
        new_connection,
    ),
    full_table(
        "conntrack_table_full_midstream",
        |net| Expect::one(dropped(net)).actors_see(TIMED_OUT),
        midstream,
    ),
    orphans("tcp_resource_limit", |net| Expect::one(freed(net)), too_many_orphans),
    // The end of an orphan's retries is not an error of any program.
    orphans("near_miss_orphan_retries", |_| Expect::nothing(), unanswered_orphan),
];

const fn orphans(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::direct(name, expect, provoke).tracer(TracerUse::Own)
}

/// EPIPE, because the client has seen the FIN before.
fn freed(net: Net) -> Incident {
    Incident::new("tcp_resource_limit", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "EPIPE")
        .origin("local_socket")
        .first_fix("raise_tcp_limits", "node")
}

/// The FIN is never acknowledged, and no orphan is allowed. The kernel counts orphans only every 100 ms, so the first
/// retransmission of the FIN finds one too many.
fn too_many_orphans(stage: &Stage<'_>) -> Result<Observed> {
    let pair = stage.open_and_talk(stage.net)?;
    let _limit = Limit::orphans(0)?;
    stage.cut_path()?;
    drop(pair.server);
    let errno = wait_error(&pair.client)?;
    stage.keep(pair.client);
    Ok(Observed::errno(errno))
}

fn unanswered_orphan(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.server()?.sysctl("net/ipv4/tcp_orphan_retries", 1)?;
    let pair = stage.open_and_talk(stage.net)?;
    stage.cut_path()?;
    drop(pair.server);
    wait_forgotten(stage.lab.server()?, CLIENT)?;
    stage.keep(pair.client);
    Ok(Observed::default())
}

/// The sockets get their error long after the incident was printed.
const TIMED_OUT: &[&str] = &["ETIMEDOUT"];

const fn full_table(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::new(name, Topology::Routed, expect, provoke)
        .needs(&[Need::Conntrack])
        .tracer(TracerUse::Own)
}

fn dropped(net: Net) -> Incident {
    Incident::new("conntrack_table_full", net.client(CLIENT), net.server(PORT))
        .observed()
        .action("drop")
        .origin("none")
}

/// A limit of the whole machine, restored on drop.
pub struct Limit {
    path: &'static str,
    before: String,
}

impl Limit {
    /// The maximum number of entries of each table.
    pub fn max(to: u64) -> Result<Self> {
        Self::lower("/proc/sys/net/netfilter/nf_conntrack_max", to)
    }

    /// The number of buckets of the hash table.
    pub fn buckets(to: u64) -> Result<Self> {
        Self::lower("/proc/sys/net/netfilter/nf_conntrack_buckets", to)
    }

    /// The maximum number of closed sockets whose FIN is not acknowledged.
    pub fn orphans(to: u64) -> Result<Self> {
        Self::lower("/proc/sys/net/ipv4/tcp_max_orphans", to)
    }

    fn lower(path: &'static str, to: u64) -> Result<Self> {
        let before = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        fs::write(path, to.to_string()).with_context(|| format!("write {to} to {path}"))?;
        Ok(Self { path, before })
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.path, self.before.trim()) {
            eprintln!("# cannot restore {}: {error}", self.path);
        }
    }
}

pub fn track(node: &Namespace) -> Result<()> {
    node.nft(
        "table inet tracked {
            chain forward { type filter hook forward priority 0; ct state established accept; }
        }",
    )
}

/// Opens connections until the table is full. All of them are established, so the kernel evicts none of them.
pub fn fill(
    stage: &Stage<'_>,
    limit: u64,
    ports: impl Iterator<Item = u16>,
) -> Result<Vec<TcpStream>> {
    let (net, client, node) = (stage.net, stage.lab.client()?, stage.lab.node()?);
    let mut fillers = Vec::new();
    for port in ports {
        if node.sysctl_value(COUNT)? >= limit {
            return Ok(fillers);
        }
        fillers.push(connect(client, net.client(port), net.server(PORT))?);
    }
    bail!("the table did not fill")
}

fn new_connection(stage: &Stage<'_>) -> Result<Observed> {
    let (net, client, node) = (stage.net, stage.lab.client()?, stage.lab.node()?);
    client.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    track(node)?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let limit = node.sysctl_value(COUNT)? + ROOM;
    let _limit = Limit::max(limit)?;
    let fillers = fill(stage, limit, FILLERS..)?;

    let errno = try_connect(client, net.client(CLIENT), net.server(PORT))?.err();
    let errno = errno.context("the connection was made despite the full table")?;
    stage.keep(listener);
    fillers.into_iter().for_each(|filler| stage.keep(filler));
    Ok(Observed::errno(errno))
}

/// The connection loses its entry, and the full table has no room for a new one.
fn midstream(stage: &Stage<'_>) -> Result<Observed> {
    let (net, client, node) = (stage.net, stage.lab.client()?, stage.lab.node()?);
    client.sysctl("net/ipv4/tcp_retries2", 3)?;
    track(node)?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let stream = connect(client, net.client(CLIENT), net.server(PORT))?;
    let server = accept(&listener)?;
    talk(&stream, &server)?;
    wait_acknowledged(stage.lab.server()?, CLIENT)?;
    let limit = node.sysctl_value(COUNT)? + ROOM;
    let _limit = Limit::max(limit)?;
    let mut ports = FILLERS..;
    let mut fillers = fill(stage, limit, ports.by_ref())?;
    let (ip, port) = (net.client(CLIENT).ip(), CLIENT);
    node.run(&format!("conntrack -D -p tcp --orig-src {ip} --sport {port}"))?;
    fillers.extend(fill(stage, limit, ports)?);

    send(&stream, "SELECT 2;\n")?;
    let errno: Errno = wait_error(&stream)?;
    stage.keep(listener);
    stage.keep(stream);
    stage.keep(server);
    fillers.into_iter().for_each(|filler| stage.keep(filler));
    Ok(Observed::errno(errno))
}
