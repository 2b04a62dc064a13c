//! Socket operations of a scenario's programs. Every wait has a deadline.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt},
};

use crate::netns::{Namespace, proc_net};

/// The deadline of waits that must succeed. Guests are emulated, and many scenarios share two processors.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const POLL_EVERY: Duration = Duration::from_millis(50);

fn tcp_socket(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .context("make a TCP socket")?;
    sockopt::set_socket_reuseaddr(&socket, true).context("set SO_REUSEADDR")?;
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE))
            .context("set a socket timeout")?;
    }
    Ok(socket)
}

pub fn listen(at: &Namespace, on: SocketAddr) -> Result<TcpListener> {
    listen_for(at, on, 128)
}

/// Listens with an accept queue that is full when it holds more than `backlog` connections.
pub fn listen_for(at: &Namespace, on: SocketAddr, backlog: i32) -> Result<TcpListener> {
    at.enter(|| {
        let socket = tcp_socket(on)?;
        rustix::net::bind(&socket, &on).with_context(|| format!("bind {on}"))?;
        rustix::net::listen(&socket, backlog).with_context(|| format!("listen on {on}"))?;
        Ok(TcpListener::from(socket))
    })
}

pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept().context("accept a connection")?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a socket timeout")?;
    Ok(stream)
}

/// Accepts a connection from either of two listeners; also returns the index of the listener.
pub fn accept_either(listeners: [&TcpListener; 2]) -> Result<(TcpStream, usize)> {
    let mut fds = listeners.map(|listener| PollFd::new(listener, PollFlags::IN));
    poll(&mut fds, Some(&timespec(PATIENCE)?)).context("poll two listeners")?;
    let index = fds.iter().position(|fd| fd.revents().contains(PollFlags::IN));
    let index = index.context("neither server was connected to")?;
    Ok((accept(listeners[index])?, index))
}

pub fn connect(at: &Namespace, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    try_connect(at, from, to)?.with_context(|| format!("connect {from} to {to}"))
}

/// As [`connect`], for a connection attempt that may fail.
pub fn try_connect(
    at: &Namespace,
    from: SocketAddr,
    to: SocketAddr,
) -> Result<Result<TcpStream, Errno>> {
    at.enter(|| {
        let socket = tcp_socket(to)?;
        rustix::net::bind(&socket, &from).with_context(|| format!("bind {from}"))?;
        Ok(rustix::net::connect(&socket, &to).map(|()| TcpStream::from(socket)))
    })
}

pub fn send(mut stream: &TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).with_context(|| format!("send {text:?}"))
}

pub fn receive(mut stream: &TcpStream, text: &str) -> Result<()> {
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).with_context(|| format!("receive {text:?}"))?;
    ensure!(got == text.as_bytes(), "received other data than {text:?}");
    Ok(())
}

/// Reads up to the peer's orderly close.
pub fn receive_end(mut stream: &TcpStream) -> Result<()> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("read up to the peer's close")?;
    ensure!(rest.is_empty(), "{} unexpected bytes before the peer's close", rest.len());
    Ok(())
}

/// The server's answer to a query.
pub const ANSWER: &str = "1 row\n";

/// Exchanges data as MySQL does: a greeting, a query, an answer. Returns the time at which the connection became idle.
pub fn talk(client: &TcpStream, server: &TcpStream) -> Result<Instant> {
    let transfer = |from, to, text| -> Result<()> {
        send(from, text)?;
        receive(to, text)
    };
    transfer(server, client, "8.0.36 greeting\n").context("the server's greeting")?;
    transfer(client, server, "SELECT 1;\n").context("the client's query")?;
    transfer(server, client, ANSWER).context("the server's answer")?;
    // Sends the delayed ACK now, so that the connection is idle from now on.
    sockopt::set_tcp_quickack(client, true).context("set TCP_QUICKACK")?;
    Ok(Instant::now())
}

/// Waits until the socket has an error, and takes it. Works where `read` would return "end of file" first.
pub fn wait_error(stream: &TcpStream) -> Result<Errno> {
    let ready = wait(stream, PollFlags::empty()).context("wait for the socket's error")?;
    ensure!(!ready.is_empty(), "no socket error within {} s", PATIENCE.as_secs());
    match sockopt::socket_error(stream).context("read SO_ERROR")? {
        Err(errno) => Ok(errno),
        Ok(()) => bail!("the connection ended without an error"),
    }
}

/// The socket's error, if it has one by now; takes it.
pub fn error_now(stream: &TcpStream) -> Result<Option<Errno>> {
    Ok(sockopt::socket_error(stream).context("read SO_ERROR")?.err())
}

/// As [`error_now`] after a wait, for an error that may not come.
pub fn error_within(stream: &TcpStream, limit: Duration) -> Result<Option<Errno>> {
    wait_within(limit, stream, PollFlags::empty()).context("wait for the socket's error")?;
    error_now(stream)
}

/// Writes on one side. Returns `None` if the data reaches the other side, or the error of the writer's socket.
pub fn reaches(writer: &TcpStream, reader: &TcpStream) -> Result<Option<Errno>> {
    send(writer, "SELECT 2;\n")?;
    let mut fds = [PollFd::new(writer, PollFlags::empty()), PollFd::new(reader, PollFlags::IN)];
    poll(&mut fds, Some(&timespec(PATIENCE)?)).context("poll both ends")?;
    let is_readable = fds[1].revents().contains(PollFlags::IN);
    if let Some(errno) = error_now(writer)? {
        return Ok(Some(errno));
    }
    ensure!(is_readable, "neither data nor an error within {} s", PATIENCE.as_secs());
    receive(reader, "SELECT 2;\n")?;
    Ok(None)
}

/// Waits until there is unread data in the socket's queue.
pub fn wait_unread(socket: impl AsFd) -> Result<()> {
    let ready = wait(socket, PollFlags::IN).context("wait for unread data")?;
    ensure!(ready.contains(PollFlags::IN), "no data came within {} s", PATIENCE.as_secs());
    Ok(())
}

fn wait(socket: impl AsFd, events: PollFlags) -> Result<PollFlags> {
    wait_within(PATIENCE, socket, events)
}

fn wait_within(limit: Duration, socket: impl AsFd, events: PollFlags) -> Result<PollFlags> {
    let mut fds = [PollFd::new(&socket, events)];
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut fds, Some(&timespec(left)?)) {
            Ok(_) => return Ok(fds[0].revents()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn timespec(duration: Duration) -> Result<Timespec> {
    Timespec::try_from(duration).context("the duration is too long for poll")
}

/// Waits until `gone` holds of a file of `/proc/net` in a namespace.
pub fn wait_proc(
    at: &Namespace,
    file: &str,
    what: &str,
    gone: impl Fn(&str) -> bool + Sync,
) -> Result<()> {
    wait_proc_within(PATIENCE, at, file, what, gone)
}

/// As [`wait_proc`], with another limit.
pub fn wait_proc_within(
    limit: Duration,
    at: &Namespace,
    file: &str,
    what: &str,
    gone: impl Fn(&str) -> bool + Sync,
) -> Result<()> {
    at.enter(|| wait_until(limit, what, || Ok(gone(&proc_net(file)?))))
}

/// Waits by polling a condition.
pub fn wait_until(
    limit: Duration,
    what: &str,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
        thread::sleep(POLL_EVERY);
    }
    Ok(())
}

/// Waits until the peer has acknowledged everything that a connection of this namespace has sent.
pub fn wait_acknowledged(at: &Namespace, peer_port: u16) -> Result<()> {
    // The fifth column is `tx_queue:rx_queue`.
    wait_proc(at, "tcp", "the last acknowledgement", |table| {
        let queues =
            connection_line(table, peer_port).and_then(|line| line.split_whitespace().nth(4));
        queues.is_some_and(|queues| queues.starts_with("00000000:"))
    })
}

/// Waits until a connection of this namespace has retransmitted its last segment `count` times.
pub fn wait_retransmissions(at: &Namespace, peer_port: u16, count: u8) -> Result<()> {
    // The seventh column, in hexadecimal.
    wait_proc(at, "tcp", "the retransmissions", |table| {
        let sent =
            connection_line(table, peer_port).and_then(|line| line.split_whitespace().nth(6));
        sent.is_some_and(|sent| u32::from_str_radix(sent, 16).is_ok_and(|it| it >= count.into()))
    })
}

/// Waits until a connection has no socket any more, not even in TIME_WAIT.
pub fn wait_forgotten(at: &Namespace, peer_port: u16) -> Result<()> {
    wait_proc(at, "tcp", "the end of the connection's last socket", |table| {
        connection_line(table, peer_port).is_none()
    })
}

/// Finds the line of a peer, such as `0: 02020C0A:0CEA 02010C0A:9C41 05 …`: the third column is the peer.
fn connection_line(table: &str, peer_port: u16) -> Option<&str> {
    let peer = format!(":{peer_port:04X}");
    let has_peer =
        |line: &&str| line.split_whitespace().nth(2).is_some_and(|it| it.ends_with(&peer));
    table.lines().find(has_peer)
}

/// Makes `close` send RST instead of FIN.
pub fn abort_on_close(stream: &TcpStream) -> Result<()> {
    sockopt::set_socket_linger(stream, Some(Duration::ZERO)).context("set SO_LINGER to 0")
}

pub fn keepalive(
    stream: &TcpStream,
    idle: Duration,
    interval: Duration,
    probes: u32,
) -> Result<()> {
    sockopt::set_tcp_keepidle(stream, idle).context("set TCP_KEEPIDLE")?;
    sockopt::set_tcp_keepintvl(stream, interval).context("set TCP_KEEPINTVL")?;
    sockopt::set_tcp_keepcnt(stream, probes).context("set TCP_KEEPCNT")?;
    sockopt::set_socket_keepalive(stream, true).context("set SO_KEEPALIVE")
}

pub fn user_timeout(stream: &TcpStream, timeout: Duration) -> Result<()> {
    let milliseconds = u32::try_from(timeout.as_millis()).context("the timeout is too long")?;
    sockopt::set_tcp_user_timeout(stream, milliseconds).context("set TCP_USER_TIMEOUT")
}

/// The name of an errno, as in `error.code`.
pub fn errno_name(errno: Errno) -> String {
    match errno {
        Errno::CONNRESET => "ECONNRESET".into(),
        Errno::CONNREFUSED => "ECONNREFUSED".into(),
        Errno::CONNABORTED => "ECONNABORTED".into(),
        Errno::TIMEDOUT => "ETIMEDOUT".into(),
        Errno::PIPE => "EPIPE".into(),
        Errno::HOSTUNREACH => "EHOSTUNREACH".into(),
        other => format!("errno {}: {}", other.raw_os_error(), io::Error::from(other)),
    }
}
