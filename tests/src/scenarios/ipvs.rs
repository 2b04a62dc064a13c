//! IPVS entries that end before their connection does.

use std::{
    collections::HashSet,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use anyhow::{Result, ensure};

use super::{CLIENT, Observed, PORT, Scenario, Stage, TracerUse};
use crate::{
    actor::{PATIENCE, accept, accept_either, connect, listen, send, talk, wait_error, wait_until},
    expect::{Expect, Incident},
    guest::Need,
    lab::{Net, Role, Topology, mapped},
    netns::{Namespace, proc_net},
};

/// Instead of 900 s.
pub(super) const TIMEOUT: u64 = 4;
/// A timeout that is longer than any scenario.
pub const NEVER: u64 = 600;

pub const SCENARIOS: &[Scenario] = &[
    ipvs(
        "ipvs_idle_expired",
        |net| Expect::one(idle_expired(net)),
        |stage| client_first(stage, stage.net, stage.net.client(CLIENT)),
    ),
    ipvs(
        "ipvs_idle_expired_v6",
        |net| Expect::one(idle_expired(net.v6())),
        |stage| client_first(stage, stage.net.v6(), stage.net.v6().client(CLIENT)),
    ),
    // The addresses of the incident are the IPv4 ones.
    ipvs(
        "ipvs_idle_expired_mapped",
        |net| Expect::one(idle_expired(net)),
        |stage| client_first(stage, stage.net, mapped(stage.net.client(CLIENT))),
    ),
    ipvs("ipvs_idle_expired_no_conntrack", |net| Expect::one(idle_expired(net)), without_conntrack),
    Scenario::new(
        "ipvs_idle_expired_two_backends",
        Topology::RoutedTwo,
        |net| Expect::one(idle_expired(net)),
        |stage| two_backends(stage, false),
    )
    .needs(NEEDS),
    // The packet goes to the other server, whose listener resets it: the root cause is the lost entry.
    Scenario::new(
        "ipvs_idle_expired_sloppy_tcp",
        Topology::RoutedTwo,
        |net| Expect::one(idle_expired(net)),
        |stage| two_backends(stage, true),
    )
    .needs(NEEDS),
    ipvs(
        "ipvs_idle_expired_direct_routing",
        |net| Expect::one(not_translated(net)),
        direct_routing,
    ),
    ipvs("ipvs_idle_expired_server_first", |net| Expect::one(seen_by_server(net)), server_first),
    // The server's error is the other end of the same broken connection.
    ipvs(
        "ipvs_idle_expired_both_ends",
        |net| Expect::one(idle_expired(net).or_both_victims()),
        both_ends,
    ),
    ipvs(
        "ipvs_idle_expired_no_kprobes",
        |net| Expect::one(by_tracepoints(net)),
        |stage| client_first(stage, stage.net, stage.net.client(CLIENT)),
    )
    .tracer(TracerUse::NoKprobes),
    ipvs("ipvs_server_removed", |net| Expect::one(server_removed(net)), remove_server),
];

pub const NEEDS: &[Need] = &[Need::Ipvs, Need::Conntrack];

pub(super) const fn ipvs(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::new(name, Topology::Routed, expect, provoke).needs(NEEDS)
}

pub(super) fn idle_expired(net: Net) -> Incident {
    Incident::new("ipvs_idle_expired", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("source", "ECONNRESET")
        .origin("local_stack")
        .idle()
        .keepalive(false)
        .ipvs_timeout(TIMEOUT)
        .netns(&[Role::Node, Role::Client])
        .first_fix("keepalive_below_limit", "application")
}

fn not_translated(net: Net) -> Incident {
    idle_expired(net).untranslated()
}

fn seen_by_server(net: Net) -> Incident {
    idle_expired(net).victim("destination", "ECONNRESET").netns(&[
        Role::Client,
        Role::Node,
        Role::Server,
    ])
}

/// `timer_expire_entry` shows the entry's end. Before 6.10 the tracepoint for a sent RST omits those without
/// a socket, so there the two events are only joined by tuple and time, and the origin of the RST is
/// unknown.
fn by_tracepoints(net: Net) -> Incident {
    let mut incident = idle_expired(net).confidence(&["observed", "correlated"]);
    incident.origin = None;
    incident
}

fn server_removed(net: Net) -> Incident {
    Incident::new("ipvs_server_removed", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("source", "ECONNRESET")
        .netns(&[Role::Node, Role::Client])
}

/// Adds an IPVS service on a VIP of a dummy device, as kube-proxy does.
pub fn serve(
    stage: &Stage<'_>,
    vip: SocketAddr,
    backends: &[SocketAddr],
    timeout: u64,
) -> Result<()> {
    serve_at(stage.lab.node()?, vip, backends, timeout)
}

pub(super) fn serve_at(
    node: &Namespace,
    vip: SocketAddr,
    backends: &[SocketAddr],
    timeout: u64,
) -> Result<()> {
    let (bits, flag) = if vip.is_ipv4() { (32, "") } else { (128, "nodad") };
    node.run("ip link add vip0 type dummy")?;
    node.run("ip link set vip0 up")?;
    node.run(&format!("ip addr add {}/{bits} dev vip0 {flag}", vip.ip()))?;
    node.run(&format!("ipvsadm --set {timeout} 0 0"))?;
    node.run(&format!("ipvsadm -A -t {vip} -s rr"))?;
    for backend in backends {
        node.run(&format!("ipvsadm -a -t {vip} -r {backend} -m"))?;
    }
    Ok(())
}

/// Enables conntrack for IPVS connections; that also needs a rule that matches on conntrack state.
pub fn track(stage: &Stage<'_>) -> Result<()> {
    let node = stage.lab.node()?;
    node.sysctl("net/ipv4/vs/conntrack", 1)?;
    node.nft(
        "table inet tracked {
            chain input { type filter hook input priority 0; ct state established accept; }
            chain forward { type filter hook forward priority 0; ct state established accept; }
        }",
    )
}

/// A connection through the service, on which both sides have sent data.
pub(super) struct Connection {
    pub(super) listener: TcpListener,
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    pub(super) idle_since: Instant,
}

impl Connection {
    fn open(stage: &Stage<'_>, net: Net, from: SocketAddr, timeout: u64) -> Result<Self> {
        serve(stage, net.vip(PORT), &[net.server(PORT)], timeout)?;
        let listener = listen(stage.lab.server()?, net.server(PORT))?;
        let to = if from.is_ipv4() { net.vip(PORT) } else { mapped(net.vip(PORT)) };
        let client = connect(stage.lab.client()?, from, to)?;
        let server = accept(&listener)?;
        let idle_since = talk(&client, &server)?;
        Ok(Self { listener, client, server, idle_since })
    }

    pub(super) fn tracked(stage: &Stage<'_>, timeout: u64) -> Result<Self> {
        track(stage)?;
        Self::open(stage, stage.net, stage.net.client(CLIENT), timeout)
    }

    pub(super) fn is_idle_now(&mut self) {
        self.idle_since = Instant::now();
    }

    /// The client sends first after the idle time; returns the error.
    pub(super) fn client_writes(self, stage: &Stage<'_>) -> Result<Observed> {
        let idle = self.idle_since.elapsed();
        send(&self.client, "SELECT 2;\n")?;
        let errno = wait_error(&self.client)?;
        self.keep(stage);
        Ok(Observed { idle: Some(idle), ..Observed::errno(errno) })
    }

    pub(super) fn keep(self, stage: &Stage<'_>) {
        stage.keep(self.listener);
        stage.keep(self.client);
        stage.keep(self.server);
    }
}

/// Waits until the client's connection has no entry in the node's IPVS table.
pub fn wait_expired(stage: &Stage<'_>, client_port: u16) -> Result<()> {
    let what = "the end of the IPVS entry";
    let node = stage.lab.node()?;
    wait_until(PATIENCE, what, || Ok(!has_entry(&connections(node)?, client_port)))
}

/// The complete table of connections. A read may miss entries: since 7.2 while they move to a larger table, which only
/// the count of all entries shows; before, when entries of any namespace end while a long table is read. So it is read
/// until a further reading adds nothing.
pub fn connections(node: &Namespace) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    // An entry that is listed twice may differ in its remaining time.
    let entry = |line: &str| line.split_whitespace().take(7).map(str::to_owned).collect::<Vec<_>>();
    node.enter(|| {
        let mut table = proc_net("ip_vs_conn")?;
        loop {
            let shown: HashSet<_> = table.lines().skip(1).map(entry).collect();
            let status = proc_net("ip_vs_status").unwrap_or_default();
            let count = status.lines().find_map(|line| line.strip_prefix("Conns:"));
            let count: Option<usize> = count.map(|count| count.trim().parse()).transpose()?;
            let again = proc_net("ip_vs_conn")?;
            let added = again.lines().skip(1).filter(|line| !shown.contains(&entry(line))).count();
            if count.map_or(added == 0, |count| shown.len() >= count) {
                return Ok(table);
            }
            ensure!(
                Instant::now() < deadline,
                "{} of {count:?} IPVS entries are listed",
                shown.len()
            );
            table = again;
        }
    })
}

/// Whether a line such as `TCP 0A0C0102 9C41 0A0C6401 0CEA …` has the client's port in its third column.
pub fn has_entry(table: &str, client_port: u16) -> bool {
    let port = format!("{client_port:04X}");
    table.lines().any(|line| line.split_whitespace().nth(2) == Some(&port))
}

fn client_first(stage: &Stage<'_>, net: Net, from: SocketAddr) -> Result<Observed> {
    track(stage)?;
    let connection = Connection::open(stage, net, from, TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    connection.client_writes(stage)
}

fn without_conntrack(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.node()?.sysctl("net/ipv4/vs/conntrack", 0)?;
    let connection = Connection::open(stage, stage.net, stage.net.client(CLIENT), TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    connection.client_writes(stage)
}

fn two_backends(stage: &Stage<'_>, sloppy: bool) -> Result<Observed> {
    let net = stage.net;
    track(stage)?;
    stage.lab.node()?.sysctl("net/ipv4/vs/sloppy_tcp", u8::from(sloppy))?;
    let backends = [net.server(PORT), net.spare(PORT)];
    serve(stage, net.vip(PORT), &backends, TIMEOUT)?;
    let listener = listen(stage.lab.server()?, backends[0])?;
    let other = listen(stage.lab.spare()?, backends[1])?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let (server, chosen) = accept_either([&listener, &other])?;
    let idle_since = talk(&client, &server)?;
    wait_expired(stage, CLIENT)?;
    stage.keep(other);
    let observed = Connection { listener, client, server, idle_since }.client_writes(stage)?;
    Ok(Observed { nat: Some(backends[chosen]), ..observed })
}

/// The server has the service's address too, and its answers bypass IPVS.
fn direct_routing(stage: &Stage<'_>) -> Result<Observed> {
    let (net, node, server) = (stage.net, stage.lab.node()?, stage.lab.server()?);
    serve(stage, net.vip(PORT), &[], TIMEOUT)?;
    node.run(&format!("ipvsadm -a -t {} -r {} -g", net.vip(PORT), net.server(PORT)))?;
    // The source of its answers is an address of the node.
    node.sysctl("net/ipv4/conf/all/accept_local", 1)?;
    node.sysctl("net/ipv4/conf/all/rp_filter", 0)?;
    server.run("ip link add vip0 type dummy")?;
    server.run("ip link set vip0 up")?;
    server.run(&format!("ip addr add {}/32 dev vip0", net.vip(PORT).ip()))?;
    let listener = listen(server, net.vip(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    let idle_since = talk(&client, &server)?;
    wait_expired(stage, CLIENT)?;
    Connection { listener, client, server, idle_since }.client_writes(stage)
}

/// The segment leaves the node with the server's own address, and the client's host has no such connection.
fn server_first(stage: &Stage<'_>) -> Result<Observed> {
    let connection = Connection::tracked(stage, TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    let idle = connection.idle_since.elapsed();
    send(&connection.server, "you have been idle\n")?;
    let errno = wait_error(&connection.server)?;
    connection.keep(stage);
    Ok(Observed { idle: Some(idle), ..Observed::errno(errno) })
}

fn both_ends(stage: &Stage<'_>) -> Result<Observed> {
    let connection = Connection::tracked(stage, TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    let idle = connection.idle_since.elapsed();
    send(&connection.client, "SELECT 2;\n")?;
    let errno = wait_error(&connection.client)?;
    send(&connection.server, "you have been idle\n")?;
    let other = wait_error(&connection.server)?;
    ensure!(other == errno, "the server saw {other}, the client {errno}");
    connection.keep(stage);
    Ok(Observed { idle: Some(idle), ..Observed::errno(errno) })
}

fn remove_server(stage: &Stage<'_>) -> Result<Observed> {
    let (net, node) = (stage.net, stage.lab.node()?);
    // The entry must not also expire by idle time.
    let connection = Connection::tracked(stage, NEVER)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 1)?;
    node.run(&format!("ipvsadm -d -t {} -r {}", net.vip(PORT), net.server(PORT)))?;
    wait_expired(stage, CLIENT)?;
    connection.client_writes(stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_the_client_port_in_both_families() {
        let table = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n\
            TCP 0A0C0102 9C41 0A0C6401 0CEA 0A0C0202 0CEA ESTABLISHED       3\n\
            TCP fd00:000c:0001:0000:0000:0000:0000:0002 9C42 fd00:000c:0064:0000:0000:0000:0000:0001 0CEA \
            fd00:000c:0002:0000:0000:0000:0000:0002 0CEA ESTABLISHED       3\n";
        assert!(has_entry(table, 0x9c41) && has_entry(table, 0x9c42));
        assert!(!has_entry(table, 0x0cea));
    }
}
