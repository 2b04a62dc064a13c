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

use anyhow::{Context, Result, bail};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::{CLIENT, Observed, PORT, Pair, Scenario, Stage};
use crate::{
    actor::{
        accept, connect, listen, receive_end, send, talk, wait_error, wait_forgotten, wait_unread,
    },
    expect::{Expect, Incident},
    lab::Net,
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
    Scenario::direct("near_miss_orderly_close", |_| Expect::nothing(), close_orderly),
];

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
