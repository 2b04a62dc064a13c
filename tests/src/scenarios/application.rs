//! The program at one end broke the connection, and programs' ends that left nothing behind.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};

use super::{CLIENT, PORT, Pair, Scenario, Stage, Witness};
use crate::actor::{
    abort_on_close, accept, connect, listen, receive_end, send, talk, wait_error, wait_forgotten,
    wait_unread,
};
use crate::expect::{Expect, Incident};
use crate::lab::{Net, Topology};

pub const SCENARIOS: &[Scenario] = &[
    direct(
        "close_unread_data",
        |net| Expect::one(aborted("close_unread_data", net)),
        |stage| close_unread(stage, stage.net),
    ),
    direct(
        "close_unread_data_v6",
        |net| Expect::one(aborted("close_unread_data", net.v6())),
        |stage| close_unread(stage, stage.net.v6()),
    ),
    direct("linger_zero", |net| Expect::one(aborted("linger_zero", net)), linger_zero),
    direct("process_killed", |net| Expect::one(aborted("process_killed", net)), kill_owner),
    direct("data_after_close", |net| Expect::one(after_close(net)), write_after_close),
    direct(
        "socket_gone_recorded",
        |net| Expect::one(long_after_close(net)),
        |stage| write_long_after_close(stage, false),
    ),
    // The listener never had the connection, but its host had: the client has seen the FIN.
    direct(
        "near_miss_closed_not_wrong_backend",
        |net| Expect::one(long_after_close(net)),
        |stage| write_long_after_close(stage, true),
    ),
    Scenario::new(
        "wrong_backend",
        Topology::RoutedTwo,
        |net| Expect::one(moved("wrong_backend", net)),
        |stage| move_address(stage, true),
    ),
    Scenario::new(
        "socket_gone",
        Topology::RoutedTwo,
        |net| Expect::one(moved("socket_gone", net)),
        |stage| move_address(stage, false),
    ),
    direct("near_miss_orderly_close", |_| Expect::nothing(), close_orderly),
];

const fn direct(
    name: &'static str,
    expect: fn(Net) -> Expect,
    provoke: fn(&Stage<'_>) -> Result<Witness>,
) -> Scenario {
    Scenario::new(name, Topology::Direct, expect, provoke)
}

fn aborted(cause: &'static str, net: Net) -> Incident {
    Incident::new(cause, net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "ECONNRESET")
        .origin("local_socket")
}

/// An RST for a socket that has seen the peer's FIN is EPIPE.
fn after_close(net: Net) -> Incident {
    Incident::new("data_after_close", net.client(CLIENT), net.server(PORT))
        .observed()
        .victim("source", "EPIPE")
}

fn long_after_close(net: Net) -> Incident {
    Incident::new("socket_gone", net.client(CLIENT), net.server(PORT))
        .or_cause("data_after_close")
        .victim("source", "EPIPE")
        .origin("local_stack")
}

/// The service's address moved to a host that never had the connection.
fn moved(cause: &'static str, net: Net) -> Incident {
    Incident::new(cause, net.client(CLIENT), net.vip(PORT))
        .inferred()
        .victim("source", "ECONNRESET")
        .origin("local_stack")
}

fn close_unread(stage: &Stage<'_>, net: Net) -> Result<Witness> {
    let Pair { client, server } = stage.open_and_talk(net)?;
    send(&client, "SELECT 2;\n")?;
    wait_unread(&server)?;
    drop(server);
    fails(stage, client)
}

fn fails(stage: &Stage<'_>, client: TcpStream) -> Result<Witness> {
    let errno = wait_error(&client)?;
    stage.keep(client);
    Ok(Witness::errno(errno))
}

fn linger_zero(stage: &Stage<'_>) -> Result<Witness> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    abort_on_close(&server)?;
    drop(server);
    fails(stage, client)
}

/// The server's socket is handed to another process, which dies with data unread.
fn kill_owner(stage: &Stage<'_>) -> Result<Witness> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    let program = env::current_exe().context("find this program")?;
    let mut owner = Command::new(program)
        .arg("actor")
        .stdin(OwnedFd::from(server))
        .stdout(Stdio::piped())
        .spawn()
        .context("start the owner of the socket")?;
    send(&client, "SELECT 2;\n")?;
    let stdout = owner.stdout.take().context("the owner's stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("wait for the owner")?;
    owner.kill().context("kill the owner")?;
    owner.wait().context("wait for the owner's end")?;
    ensure!(line.trim() == OWNER_HAS_DATA, "the owner said {line:?}");
    fails(stage, client)
}

const OWNER_HAS_DATA: &str = "unread";

/// The process that `kill_owner` kills: owns the socket on its standard input and reads nothing.
pub fn own_socket() -> Result<()> {
    wait_unread(io::stdin())?;
    println!("{OWNER_HAS_DATA}");
    loop {
        thread::park();
    }
}

/// The server has read everything and closed; TIME_WAIT or FIN_WAIT2 is all that is left of it.
fn write_after_close(stage: &Stage<'_>) -> Result<Witness> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    drop(server);
    receive_end(&client)?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}

/// Not even FIN_WAIT2 is left.
fn write_long_after_close(stage: &Stage<'_>, still_listening: bool) -> Result<Witness> {
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

/// The route to the service's address changes in the middle of a connection.
fn move_address(stage: &Stage<'_>, other_listens: bool) -> Result<Witness> {
    let (net, lab) = (stage.net, stage.lab);
    let vip = net.vip(PORT);
    for host in [lab.server()?, lab.spare()?] {
        host.run(&format!("ip addr add {}/32 dev lo", vip.ip()))?;
    }
    let node = lab.node()?;
    node.run(&format!("ip route add {} via {}", vip.ip(), net.server(0).ip()))?;
    let listener = listen(lab.server()?, vip)?;
    if other_listens {
        stage.keep(listen(lab.spare()?, vip)?);
    }
    let client = connect(lab.client()?, net.client(CLIENT), vip)?;
    let server = accept(&listener)?;
    talk(&client, &server)?;
    stage.keep(listener);
    stage.keep(server);
    node.run(&format!("ip route replace {} via {}", vip.ip(), net.spare(0).ip()))?;
    send(&client, "SELECT 2;\n")?;
    fails(stage, client)
}

fn close_orderly(stage: &Stage<'_>) -> Result<Witness> {
    let Pair { client, server } = stage.open_and_talk(stage.net)?;
    drop(server);
    receive_end(&client)?;
    drop(client);
    Ok(Witness::default())
}
