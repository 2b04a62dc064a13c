//! Events before the tracer started: which end is the client, and flows that are older than the tracer.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use super::{
    CLIENT, Observed, PORT, Pair, Scenario, Stage, TracerUse, conntrack,
    ipvs::{Connection, NEEDS, NEVER, TIMEOUT, serve, track, wait_expired},
};
use crate::{
    actor::{
        abort_on_close, accept, accept_either, connect, keepalive, listen, receive_end, send, talk,
        wait_acknowledged, wait_error, wait_forgotten,
    },
    expect::{Expect, Incident},
    lab::{Net, Role, Topology},
};

/// Both ports are ephemeral, and the larger one is the server's.
const CALLER: u16 = 33_001;
const CALLED: u16 = 55_001;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "linger_zero_ephemeral_ports",
        Topology::Direct,
        |net| Expect::one(aborted(net)),
        abort_between_ephemeral_ports,
    )
    // In parallel with others, a guest may need longer to list its listeners than a verdict waits.
    .tracer(TracerUse::Own),
    balanced(
        "ipvs_idle_expired_started_late",
        |net| Expect::one(expired(net)),
        |stage| {
            let connection = expire_unseen(stage)?;
            connection.client_writes(stage)
        },
    ),
    balanced(
        "ipvs_idle_expired_started_late_server_first",
        |net| Expect::one(expired(net).victim("destination", "ECONNRESET").netns(&[Role::Server])),
        |stage| server_writes(stage, expire_unseen(stage)?),
    ),
    // The server's own socket shows which of the two servers it was.
    Scenario::new(
        "ipvs_idle_expired_started_late_two_backends",
        Topology::RoutedTwo,
        |net| Expect::one(expired(net)),
        one_of_two,
    )
    .needs(NEEDS)
    .tracer(TracerUse::Late),
    // The entry was deleted long before the idle time reached the limit.
    balanced(
        "near_miss_started_late_ipvs_young",
        |net| Expect::one(young(net)),
        |stage| {
            let connection = lose_entry(stage)?;
            connection.client_writes(stage)
        },
    ),
    balanced(
        "near_miss_started_late_ipvs_young_server_first",
        |net| Expect::one(young(net).victim("destination", "ECONNRESET")),
        |stage| server_writes(stage, lose_entry(stage)?),
    ),
    tracked(
        "conntrack_idle_expired_started_late",
        |net| Expect::one(nat_expired(net)),
        |stage| lose_nat_entry(stage, true),
    ),
    tracked(
        "near_miss_started_late_conntrack_young",
        |net| Expect::one(nat_gone(net)),
        |stage| lose_nat_entry(stage, false),
    ),
    direct("data_after_close_started_late", |net| Expect::one(closed(net)), close_unseen),
    direct(
        "socket_gone_started_late",
        |net| Expect::one(gone(net)),
        |stage| forget_unseen(stage, false),
    ),
    // The client has seen the FIN of the server that still listens there.
    direct(
        "near_miss_started_late_closed_not_wrong_backend",
        |net| Expect::one(gone(net)),
        |stage| forget_unseen(stage, true),
    ),
    direct(
        "keepalive_exhausted_started_late",
        |net| Expect::one(unanswered(net)),
        exhaust_keepalive,
    ),
];

const fn balanced(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::new(name, Topology::Routed, expect, provoke).needs(NEEDS).tracer(TracerUse::Late)
}

const fn tracked(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::new(name, Topology::Routed, expect, provoke)
        .needs(conntrack::NEEDS)
        .tracer(TracerUse::Late)
}

const fn direct(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Observed>,
) -> Scenario {
    Scenario::direct(name, expect, provoke).tracer(TracerUse::Late)
}

/// The only evidence left: the idle time, and the limit that the node still has.
fn expired(net: Net) -> Incident {
    Incident::new("ipvs_idle_expired", net.client(CLIENT), net.vip(PORT))
        .inferred()
        .nat(net.server(PORT))
        .victim("source", "ECONNRESET")
        .idle()
        .keepalive(false)
        .ipvs_timeout(TIMEOUT)
        .first_fix("keepalive_below_limit", "application")
}

/// The entry is certainly lost, and not by a timer; what deleted it was not seen.
fn young(net: Net) -> Incident {
    Incident::new("unknown", net.client(CLIENT), net.vip(PORT))
        .or_cause("ipvs_server_removed")
        .victim("source", "ECONNRESET")
        .idle()
}

/// The evidence left: the idle time, the limit, and the entry that the server's packet created.
fn nat_expired(net: Net) -> Incident {
    Incident::new("conntrack_idle_expired", net.client(CLIENT), net.vip(PORT))
        .inferred()
        .nat(net.server(PORT))
        .victim("destination", "ECONNRESET")
        .idle()
}

/// The entry was deleted before the tracer started, not by a timer.
fn nat_gone(net: Net) -> Incident {
    Incident::new("unknown", net.client(CLIENT), net.vip(PORT))
        .victim("destination", "ECONNRESET")
        .idle()
}

fn closed(net: Net) -> Incident {
    Incident::new("data_after_close", net.client(CLIENT), net.server(PORT))
        .victim("source", "EPIPE")
        .evidence("closed")
}

fn gone(net: Net) -> Incident {
    Incident::new("socket_gone", net.client(CLIENT), net.server(PORT))
        .inferred()
        .victim("source", "EPIPE")
        .origin("local_stack")
}

fn unanswered(net: Net) -> Incident {
    Incident::new("keepalive_exhausted", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ETIMEDOUT")
        .keepalive(true)
}

fn aborted(net: Net) -> Incident {
    Incident::new("linger_zero", net.client(CALLER), net.server(CALLED))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

fn abort_between_ephemeral_ports(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let listener = listen(stage.lab.server()?, net.server(CALLED))?;
    let client = connect(stage.lab.client()?, net.client(CALLER), net.server(CALLED))?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    abort_on_close(&server)?;
    drop(server);
    let errno = wait_error(&client)?;
    stage.keep(listener);
    stage.keep(client);
    Ok(Observed::errno(errno))
}

/// A connection whose entry expired before the tracer started.
fn expire_unseen(stage: &Stage<'_>) -> Result<Connection> {
    let connection = Connection::tracked(stage, TIMEOUT)?;
    wait_expired(stage, CLIENT)?;
    (stage.start_tracer)()?;
    Ok(connection)
}

/// A connection whose entry was deleted with its server; the server was added again.
fn lose_entry(stage: &Stage<'_>) -> Result<Connection> {
    let (vip, server) = (stage.net.vip(PORT), stage.net.server(PORT));
    let node = stage.lab.node()?;
    let connection = Connection::tracked(stage, NEVER)?;
    node.sysctl("net/ipv4/vs/expire_nodest_conn", 1)?;
    node.run(&format!("ipvsadm -d -t {vip} -r {server}"))?;
    wait_expired(stage, CLIENT)?;
    node.run(&format!("ipvsadm -a -t {vip} -r {server} -m"))?;
    (stage.start_tracer)()?;
    Ok(connection)
}

fn server_writes(stage: &Stage<'_>, connection: Connection) -> Result<Observed> {
    let idle = connection.idle_since.elapsed();
    send(&connection.server, "you have been idle\n")?;
    let errno = wait_error(&connection.server)?;
    connection.keep(stage);
    Ok(Observed { idle: Some(idle), ..Observed::errno(errno) })
}

fn one_of_two(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let backends: [SocketAddr; 2] = [net.server(PORT), net.spare(PORT)];
    track(stage)?;
    serve(stage, net.vip(PORT), &backends, TIMEOUT)?;
    let listener = listen(stage.lab.server()?, backends[0])?;
    let other = listen(stage.lab.spare()?, backends[1])?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.vip(PORT))?;
    let (server, chosen) = accept_either([&listener, &other])?;
    let idle_since = talk(&client, &server)?;
    wait_expired(stage, CLIENT)?;
    (stage.start_tracer)()?;
    stage.keep(other);
    let observed = Connection { listener, client, server, idle_since }.client_writes(stage)?;
    Ok(Observed { nat: Some(backends[chosen]), ..observed })
}

/// The NAT entry is gone before the tracer starts: it expired and a dump removed it, or it was deleted.
fn lose_nat_entry(stage: &Stage<'_>, expire: bool) -> Result<Observed> {
    let node = stage.lab.node()?;
    if expire {
        conntrack::shorten_timeout(stage)?;
    }
    let connection = conntrack::Connection::open(stage)?;
    wait_acknowledged(stage.lab.server()?, CLIENT)?;
    if expire {
        connection.outwait_timeout();
        node.run("conntrack -L -p tcp")?;
    } else {
        node.run("conntrack -F")?;
    }
    (stage.start_tracer)()?;
    let idle = connection.idle_since.elapsed();
    Ok(Observed { idle: Some(idle), ..connection.server_writes(stage)? })
}

/// Only TIME_WAIT or FIN_WAIT2 is left of the server's side.
fn close_unseen(stage: &Stage<'_>) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    drop(server);
    receive_end(&client)?;
    (stage.start_tracer)()?;
    send(&client, "SELECT 2;\n")?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}

/// Nothing is left of the server's side, not even FIN_WAIT2.
fn forget_unseen(stage: &Stage<'_>, still_listening: bool) -> Result<Observed> {
    let net = stage.net;
    let host = stage.lab.server()?;
    host.sysctl("net/ipv4/tcp_fin_timeout", 1)?;
    let listener = listen(host, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    drop(server);
    receive_end(&client)?;
    if still_listening {
        stage.keep(listener);
    } else {
        drop(listener);
    }
    wait_forgotten(host, CLIENT)?;
    (stage.start_tracer)()?;
    send(&client, "SELECT 2;\n")?;
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}

fn exhaust_keepalive(stage: &Stage<'_>) -> Result<Observed> {
    let pair = stage.open_and_talk(stage.net)?;
    (stage.start_tracer)()?;
    keepalive(&pair.client, Duration::from_secs(1), Duration::from_secs(1), 2)?;
    stage.cut_path()?;
    pair.client_fails(stage)
}
