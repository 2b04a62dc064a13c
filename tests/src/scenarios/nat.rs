//! Translated connections whose entry does not match a packet, is deleted, or cannot be created.

use std::net::{SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, Result, bail, ensure};

use super::{
    CLIENT, Observed, PORT, Pair, Scenario, Stage, TracerUse, capacity::Limit, conntrack::translate,
};
use crate::{
    actor::{
        PATIENCE, accept, connect, listen, receive, send, talk, try_connect, wait_acknowledged,
        wait_error, wait_until,
    },
    expect::{Expect, Incident},
    guest::Need,
    lab::{Net, Topology},
    rawtcp::{ACK, PSH, RawEnd, SYN},
    tools,
};

const COUNT: &str = "net/netfilter/nf_conntrack_count";
/// The one port that NAT may use.
const ONLY_PORT: u16 = 50_000;
/// Beyond any window that the ends can have negotiated (64 KiB, scaled by 2^14: RFC 7323 2.3).
pub const FAR: u32 = 1 << 30;
/// The number of bytes that the server has sent at the end of `talk`.
pub const SENT: u32 = 22;

pub const SCENARIOS: &[Scenario] = &[
    nat("conntrack_invalid", |net| Expect::one(invalid(net)), |stage| beyond_window(stage, false)),
    nat("near_miss_conntrack_liberal", |_| Expect::nothing(), |stage| beyond_window(stage, true)),
    nat("masquerade_flushed", |net| Expect::one(flushed(net)), change_address),
    // Alone, because entries are read through a module that makes all connections slower.
    nat("nat_removed", |net| Expect::one(untranslated(net)), remove_last_chain)
        .needs(&[Need::Conntrack, Need::Nat])
        .tracer(TracerUse::Own),
    // Established connections keep their translation while there is any NAT chain.
    nat("near_miss_nat_rules_flushed", |_| Expect::nothing(), flush_rules),
    nat("near_miss_masquerade_same_address", |_| Expect::nothing(), bounce_link),
    nat(
        "nat_port_exhausted",
        |net| Expect::one(exhausted(net)).actors_see(&["ETIMEDOUT"]),
        exhaust_ports,
    ),
    Scenario::new(
        "conntrack_early_drop",
        Topology::RoutedTwo,
        |net| Expect::one(evicted(net)),
        evict_half_open,
    )
    .needs(&[Need::Conntrack])
    .tracer(TracerUse::Own),
];

const fn nat(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::new(name, Topology::Routed, expect, provoke).needs(&[Need::Conntrack])
}

/// No host answers for the service's address.
fn untranslated(net: Net) -> Incident {
    Incident::new("nat_removed", net.client(CLIENT), net.vip(PORT))
        .confidence(&["correlated"])
        .nat(net.server(PORT))
        .victim("source", "ETIMEDOUT")
        .action("timeout")
        .origin("none")
        .first_fix("keep_the_nat_chains", "firewall")
}

fn translated(stage: &Stage<'_>) -> Result<Pair> {
    let net = stage.net;
    translate(stage, &net.server(PORT).to_string())?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    stage.keep(listener);
    talk(&client, &server)?;
    Ok(Pair { client, server })
}

fn remove_last_chain(stage: &Stage<'_>) -> Result<Observed> {
    // As under kube-proxy.
    tools::run(None, "modprobe nf_conntrack_netlink", "")?;
    stage.lab.client()?.sysctl("net/ipv4/tcp_retries2", 3)?;
    let (net, node) = (stage.net, stage.lab.node()?);
    // Packets to the service's address go to a host that drops them without an answer.
    node.run(&format!("ip route add {} via {}", net.vip(PORT).ip(), net.server(PORT).ip()))?;
    let pair = translated(stage)?;
    node.nft("delete table ip nat")?;
    send(&pair.client, "SELECT 2;\n")?;
    pair.client_fails(stage)
}

fn flush_rules(stage: &Stage<'_>) -> Result<Observed> {
    // conntrack itself is hooked in only while a rule needs it.
    stage.lab.node()?.nft(
        "table inet stateful {
            chain forward { type filter hook forward priority 0; ct state established accept; }
        }",
    )?;
    let Pair { client, server } = translated(stage)?;
    stage.lab.node()?.nft("flush table ip nat")?;
    talk(&client, &server)?;
    stage.keep(client);
    stage.keep(server);
    Ok(Observed::default())
}

fn invalid(net: Net) -> Incident {
    Incident::new("conntrack_invalid", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("destination", "ECONNRESET")
        .origin("local_stack")
        .first_fix("conntrack_be_liberal", "node")
}

fn flushed(net: Net) -> Incident {
    Incident::new("masquerade_flushed", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("local_stack")
        .first_fix("keep_the_address", "node")
}

fn exhausted(net: Net) -> Incident {
    Incident::new("nat_port_exhausted", net.client(CLIENT), net.server(PORT))
        .confidence(&["correlated"])
        .action("drop")
        .origin("none")
}

fn evicted(net: Net) -> Incident {
    Incident::new("conntrack_early_drop", net.client(CLIENT), net.vip(PORT))
        .observed()
        .nat(net.server(PORT))
        .victim("source", "ECONNRESET")
        .origin("local_stack")
        .first_fix("restore_conntrack_max", "node")
}

/// A segment from the server, far outside the window. conntrack classifies it as INVALID and does not
/// translate it, unless nf_conntrack_tcp_be_liberal is set.
fn beyond_window(stage: &Stage<'_>, liberal: bool) -> Result<Observed> {
    let net = stage.net;
    let (server_side, service) = (stage.lab.server()?, net.server(PORT));
    stage.lab.node()?.sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", u8::from(liberal))?;
    translate(stage, &service.to_string())?;
    let wire = RawEnd::new(server_side, service)?;
    let listener = listen(server_side, service)?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let server = accept(&listener)?;
    let made = wire.await_segment("the handshake's ACK", |it| it.has(ACK) && !it.has(SYN))?;
    talk(&client, &server)?;
    let SocketAddr::V4(to) = net.client(CLIENT) else { bail!("the client is not IPv4") };
    let last = wire.await_segment("the client's last ACK", |it| {
        it.has(ACK) && it.ack == made.ack.wrapping_add(SENT)
    })?;
    wire.send(to, last.ack.wrapping_add(FAR), last.seq, ACK | PSH)?;
    let observed = if liberal {
        wire.await_segment("the client's answer", |it| it.ack == last.ack && it.seq == last.seq)?;
        Observed::default()
    } else {
        Observed::errno(wait_error(&server)?)
    };
    stage.keep(listener);
    stage.keep(client);
    stage.keep(server);
    Ok(observed)
}

pub fn postrouting(stage: &Stage<'_>, statement: &str) -> Result<()> {
    stage.lab.node()?.nft(&format!(
        "table ip nat {{
            chain postrouting {{
                type nat hook postrouting priority 100;
                oifname \"server\" ip protocol tcp {statement};
            }}
        }}"
    ))
}

fn wait_flushed(stage: &Stage<'_>) -> Result<()> {
    let node = stage.lab.node()?;
    wait_until(PATIENCE, "the flush of the entries", || Ok(node.sysctl_value(COUNT)? == 0))
}

/// The address that the connection is masqueraded as is deleted, and another one is added.
fn change_address(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    postrouting(stage, "masquerade")?;
    let Pair { client, server } = stage.open_and_talk(net)?;
    wait_acknowledged(stage.lab.server()?, CLIENT)?;
    let (old, new) = net.node_addresses();
    let node = stage.lab.node()?;
    node.run(&format!("ip addr del {old}/24 dev server"))?;
    wait_flushed(stage)?;
    node.run(&format!("ip addr add {new}/24 dev server"))?;
    send(&client, "SELECT 2;\n")?;
    Pair { client, server }.client_fails(stage)
}

/// The entries are flushed too, but the next packet gets the same address and port.
fn bounce_link(stage: &Stage<'_>) -> Result<Observed> {
    postrouting(stage, "masquerade")?;
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    wait_acknowledged(stage.lab.server()?, CLIENT)?;
    let node = stage.lab.node()?;
    node.run("ip link set server down")?;
    wait_flushed(stage)?;
    node.run("ip link set server up")?;
    send(&client, "SELECT 2;\n")?;
    receive(&server, "SELECT 2;\n")?;
    stage.keep(client);
    stage.keep(server);
    Ok(Observed::default())
}

fn exhaust_ports(stage: &Stage<'_>) -> Result<Observed> {
    let (net, at) = (stage.net, stage.lab.client()?);
    at.sysctl("net/ipv4/tcp_syn_retries", 1)?;
    postrouting(stage, &format!("masquerade to :{ONLY_PORT}-{ONLY_PORT}"))?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let holder = connect(at, net.client(CLIENT + 1), net.server(PORT))?;
    let errno = try_connect(at, net.client(CLIENT), net.server(PORT))?.err();
    let errno = errno.context("the connection was made with a port that is in use")?;
    stage.keep(listener);
    stage.keep(holder);
    Ok(Observed::errno(errno))
}

/// One service, whose connections go alternately to two servers.
pub fn serve_by_turns(stage: &Stage<'_>) -> Result<()> {
    let (one, other) = (stage.net.server(PORT), stage.net.spare(PORT));
    translate(stage, &format!("numgen inc mod 2 map {{ 0 : {}, 1 : {} }}", one.ip(), other.ip()))?;
    stage.keep(listen(stage.lab.server()?, one)?);
    stage.keep(listen(stage.lab.spare()?, other)?);
    Ok(())
}

/// A connection whose handshake's last ACK does not reach the node.
pub struct HalfOpen {
    pub client: TcpStream,
    /// The command that looks its entry up.
    pub entry: String,
}

/// The nftables command that lets the client's ACKs pass again.
pub const UNMUTE: &str = "delete table inet mute";

impl HalfOpen {
    pub fn connect(stage: &Stage<'_>, port: u16) -> Result<Self> {
        let (net, client_side) = (stage.net, stage.lab.client()?);
        client_side.nft(
            "table inet mute {
                chain output {
                    type filter hook output priority 0;
                    tcp flags & (syn|ack) == ack drop;
                }
            }",
        )?;
        let client = connect(client_side, net.client(port), net.vip(PORT))?;
        let (from, to) = (net.client(0).ip(), net.vip(0).ip());
        let entry = format!("conntrack -G -p tcp -s {from} -d {to} --sport {port} --dport {PORT}");
        stage.lab.node()?.run(&entry).context("the entry that is to be evicted")?;
        Ok(Self { client, entry })
    }
}

/// The node never sees the handshake's last ACK, so the entry stays half open, the only kind of TCP entry that a
/// full table evicts. conntrack then picks the connection up again and sends it to the other server.
fn evict_half_open(stage: &Stage<'_>) -> Result<Observed> {
    const FILLERS: std::ops::Range<u16> = 10_000..30_000;
    let (net, lab) = (stage.net, stage.lab);
    serve_by_turns(stage)?;
    // A SYN|ACK that is retransmitted after the eviction would have other effects.
    lab.server()?.sysctl("net/ipv4/tcp_synack_retries", 0)?;
    let (client_side, node) = (lab.client()?, lab.node()?);
    let HalfOpen { client, entry } = HalfOpen::connect(stage, CLIENT)?;

    // `early_drop` searches eight buckets only (NF_CT_EVICTION_RANGE): in a small table one of many tries
    // finds the entry.
    let limits = [Limit::buckets(512)?, Limit::max(node.sysctl_value(COUNT)? + 4)?];
    let filler = client_side.enter(|| Ok(UdpSocket::bind(net.client(0))?))?;
    let mut ports = FILLERS;
    while node.run(&entry).is_ok() {
        let burst = ports.by_ref().take(500);
        ensure!(burst.len() > 0, "the entry survived {} other flows", FILLERS.len());
        for port in burst {
            filler.send_to(b"x", net.server(port)).context("send a datagram")?;
        }
    }
    drop(limits);

    client_side.nft(UNMUTE)?;
    send(&client, "SELECT 2;\n")?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}
