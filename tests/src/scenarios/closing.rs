//! Data for a connection that the other side has closed: a race, or an application that ignored the close.

use std::{
    env,
    io::{self, Read},
    net::TcpStream,
    os::fd::AsRawFd,
    process::{Child, Command},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::{CLIENT, Observed, PORT, Pair, Scenario, Stage};
use crate::{
    actor::{
        accept, connect, listen, receive_end, send, talk, try_connect, wait_error, wait_forgotten,
        wait_unread,
    },
    expect::{Expect, Incident},
    lab::Net,
    rawtcp::{ACK, FIN, RST, RawEnd, SYN, v4},
    tools,
};

/// The server's keep-alive timeout: longer than 1 s, after which a connection counts as idle.
const KEEP_ALIVE: Duration = Duration::from_millis(1_300);

pub const SCENARIOS: &[Scenario] = &[
    Scenario::direct("process_killed", |net| Expect::one(killed(net)), kill_owner),
    Scenario::direct("idle_close_race", |net| Expect::one(raced(net, "EPIPE")), reuse_at_close),
    // The request and the FIN pass each other on the way.
    Scenario::direct(
        "idle_close_race_crossing",
        |net| Expect::one(raced(net, "ECONNRESET")),
        cross_the_fin,
    ),
    // The client had read the end of file before it wrote.
    Scenario::direct(
        "near_miss_closed_idle_and_told",
        |net| Expect::one(after_close(net, "closed the connection")),
        |stage| close_then_write(stage, KEEP_ALIVE),
    ),
    Scenario::direct(
        "data_after_close",
        |net| {
            let closed = after_close(net, "closed the connection");
            Expect::one(closed.first_fix("reuser_gives_up_first", "application"))
        },
        |stage| close_then_write(stage, Duration::ZERO),
    ),
    Scenario::direct(
        "data_after_close_killed",
        |net| {
            let killed = after_close(net, "killed by signal 9");
            Expect::one(killed.first_fix("stop_gracefully", "application"))
        },
        kill_reader,
    ),
    Scenario::direct(
        "socket_gone_recorded",
        |net| Expect::one(long_after_close(net)),
        |stage| write_long_after_close(stage, false),
    ),
    // The client had closed first after its timeout: the fix is on the client's side.
    Scenario::direct(
        "socket_gone_at_the_client",
        |net| Expect::one(client_timed_out(net)),
        answer_long_after_close,
    ),
    // The listener never had the connection, but its host had it: the client has seen the FIN.
    Scenario::direct(
        "near_miss_closed_not_wrong_backend",
        |net| Expect::one(long_after_close(net)),
        |stage| write_long_after_close(stage, true),
    ),
    // An older socket of the same addresses and ports gets the SYN of a new connection.
    Scenario::direct(
        "data_after_close_port_reused",
        |net| Expect::one(remembered(net)),
        reuse_port,
    ),
    // The client is on another host, and more of its data is on the way.
    Scenario::direct(
        "close_unread_data_in_flight",
        |net| Expect::one(unread(net)),
        close_before_the_rest_arrives,
    ),
    Scenario::direct("near_miss_orderly_close", |_| Expect::nothing(), close_orderly),
];

fn remembered(net: Net) -> Incident {
    Incident::new("data_after_close", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNREFUSED")
        .evidence("TIME_WAIT")
        .first_fix("connect_from_another_port", "application")
}

fn unread(net: Net) -> Incident {
    Incident::new("close_unread_data", net.remote_client(CLIENT), net.server(PORT))
        .observed()
        .origin("local_socket")
}

fn killed(net: Net) -> Incident {
    Incident::new("process_killed", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

/// For a socket that has seen the peer's FIN, a RST is EPIPE.
fn raced(net: Net, errno: &'static str) -> Incident {
    Incident::new("idle_close_race", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", errno)
        .first_fix("pool_idle_below_limit", "application")
}

fn after_close(net: Net, how: &'static str) -> Incident {
    Incident::new("data_after_close", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "EPIPE")
        .evidence(how)
}

fn long_after_close(net: Net) -> Incident {
    Incident::new("socket_gone", net.client(CLIENT), net.server(PORT))
        .or_cause("data_after_close")
        .victim("source", "EPIPE")
        .origin("local_stack")
}

fn client_timed_out(net: Net) -> Incident {
    Incident::new("socket_gone", net.client(CLIENT), net.server(PORT))
        .victim("destination", "EPIPE")
        .origin("local_stack")
        .first_fix("caller_waits_longer", "application")
}

fn fails(stage: &Stage<'_>, client: TcpStream) -> Result<Observed> {
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Observed::errno(errno))
}

/// Waits for the next request like a server with a keep-alive timeout, and closes when none comes.
fn close_when_idle(mut server: TcpStream, keep_alive: Duration) -> Result<()> {
    if keep_alive.is_zero() {
        return Ok(());
    }
    server.set_read_timeout(Some(keep_alive)).context("set the keep-alive timeout")?;
    match server.read(&mut [0; 64]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error).context("wait for the next request"),
        Ok(length) => bail!("{length} bytes came before the keep-alive timeout"),
    }
}

fn reuse_at_close(stage: &Stage<'_>) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    close_when_idle(server, KEEP_ALIVE)?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}

fn cross_the_fin(stage: &Stage<'_>) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    stage.lab.client()?.nft(
        "table inet late {
            chain input { type filter hook input priority 0; tcp flags fin drop; }
        }",
    )?;
    close_when_idle(server, KEEP_ALIVE)?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}

/// Only TIME_WAIT or FIN_WAIT2 is left of the server's side.
fn close_then_write(stage: &Stage<'_>, keep_alive: Duration) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    close_when_idle(server, keep_alive)?;
    receive_end(&client)?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}

/// Hands the server's socket to another process, which then has the only copy: its close ends the connection.
fn give_away(server: TcpStream) -> Result<Child> {
    let number = server.as_raw_fd();
    let owner = tools::apart(move || {
        let ours = pidfd_open(getpid(), PidfdFlags::empty()).context("open our own process")?;
        let socket =
            pidfd_getfd(ours, number, PidfdGetfdFlags::empty()).context("take a socket")?;
        let program = env::current_exe().context("find this program")?;
        Command::new(program).arg("actor").stdin(socket).spawn().context("start the socket's owner")
    })?;
    drop(server);
    Ok(owner)
}

fn kill(mut owner: Child) -> Result<()> {
    owner.kill().context("kill the owner")?;
    owner.wait().context("wait for the owner's end")?;
    Ok(())
}

/// The owner is killed while its socket has unread data.
fn kill_owner(stage: &Stage<'_>) -> Result<Observed> {
    let pair = stage.open_and_talk(stage.net)?;
    fails(stage, kill_with_unread(pair)?)
}

/// Kills the owner of the server's socket while a request is unread; returns the client's socket.
pub(super) fn kill_with_unread(pair: Pair) -> Result<TcpStream> {
    let Pair { client, server } = pair;
    send(&client, "SELECT 2;\n")?;
    wait_unread(&server)?;
    kill(give_away(server)?)?;
    Ok(client)
}

/// The owner is killed after it has read everything: the client gets a FIN, but still writes.
fn kill_reader(stage: &Stage<'_>) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    kill(give_away(server)?)?;
    receive_end(&client)?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}

/// The process that is killed: it owns the socket on its stdin and reads nothing.
pub fn own_socket() -> ! {
    loop {
        thread::park();
    }
}

/// Nothing is left of the server's side, not even FIN_WAIT2.
fn write_long_after_close(stage: &Stage<'_>, still_listening: bool) -> Result<Observed> {
    let net = stage.net;
    stage.lab.server()?.sysctl("net/ipv4/tcp_fin_timeout", 1)?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    let client = connect(stage.lab.client()?, net.client(CLIENT), net.server(PORT))?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    if still_listening {
        stage.keep(listener);
    } else {
        drop(listener);
    }
    drop(server);
    receive_end(&client)?;
    wait_forgotten(stage.lab.server()?, CLIENT)?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}

/// The server takes longer than the client waits.
fn answer_long_after_close(stage: &Stage<'_>) -> Result<Observed> {
    stage.lab.client()?.sysctl("net/ipv4/tcp_fin_timeout", 1)?;
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    drop(client);
    receive_end(&server)?;
    wait_forgotten(stage.lab.client()?, PORT)?;
    send(&server, "the answer\n")?;
    fails(stage, server)
}

fn close_orderly(stage: &Stage<'_>) -> Result<Observed> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    drop(server);
    receive_end(&client)?;
    drop(client);
    Ok(Observed::default())
}

/// The client's first socket is simulated, so that its host has forgotten it when the second one connects. The SYN of
/// the second is held back until the first connection has used the sequence numbers before it.
fn reuse_port(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let (from, to) = (v4(net.client(CLIENT))?, v4(net.server(PORT))?);
    let (at_client, at_server) = (stage.lab.client()?, stage.lab.server()?);
    // A kernel's SYN has options, a simulated one has none.
    at_server.nft(
        "table inet late {
            chain input { type filter hook input priority 0; tcp flags syn tcp doff > 5 drop; }
        }",
    )?;
    // The second socket must not answer what belongs to the first one.
    at_client.nft(
        "table inet deaf {
            chain input { type filter hook input priority 0; tcp flags & rst == 0 drop; }
        }",
    )?;
    let listener = listen(at_server, net.server(PORT))?;
    let first = RawEnd::new(at_client, net.client(CLIENT))?;
    let arrivals = RawEnd::new(at_server, net.server(PORT))?;
    let refused = thread::scope(|scope| {
        let second = scope.spawn(|| try_connect(at_client, net.client(CLIENT), net.server(PORT)));
        let syn = arrivals.await_segment("the SYN", |it| it.from == from && it.has(SYN))?;
        let isn = syn.seq.wrapping_sub(1_000);
        let next = isn.wrapping_add(1);
        first.send(to, isn, 0, SYN)?;
        let answer = first.await_segment("the SYN|ACK", |it| it.to == from && it.has(SYN))?;
        first.send(to, next, answer.seq.wrapping_add(1), ACK)?;
        drop(accept(&listener)?);
        let fin = first.await_segment("the FIN", |it| it.to == from && it.has(FIN))?;
        first.send(to, next, fin.seq.wrapping_add(1), ACK)?;
        at_server.nft("delete table inet late")?;
        second.join().map_err(|_| anyhow!("the client's thread panicked"))?
    })?;
    stage.keep(listener);
    Ok(Observed::errno(refused.err().context("the connect succeeded")?))
}

/// The server closes with unread data while a whole window of the client's data is on a long path.
fn close_before_the_rest_arrives(stage: &Stage<'_>) -> Result<Observed> {
    let net = stage.net;
    let to = v4(net.server(PORT))?;
    let client = net.remote_client(CLIENT);
    let route = format!("ip route add {} via {}", client.ip(), net.client(CLIENT).ip());
    stage.lab.server()?.run(&route)?;
    let remote = RawEnd::new(stage.lab.client()?, client)?;
    let listener = listen(stage.lab.server()?, net.server(PORT))?;
    remote.send(to, 0, 0, SYN)?;
    let answer = remote.await_segment("the SYN|ACK", |it| it.from == to && it.has(SYN | ACK))?;
    let ack = answer.seq.wrapping_add(1);
    remote.send(to, 1, ack, ACK)?;
    let server = accept(&listener)?;
    remote.send_data(to, 1, ack, b"first part")?;
    wait_unread(&server)?;
    drop(server);
    remote.await_segment("the RST", |it| it.has(RST))?;
    for part in 1..=8 {
        remote.send_data(to, part * 60_000, ack, b"another part")?;
        remote.await_segment("the RST that answers it", |it| it.has(RST))?;
    }
    stage.keep(listener);
    Ok(Observed::default())
}
