//! The kinds of connections of the interleaved scenario, and the steps in which they end.

use std::{
    fmt,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use super::super::{Pair, Stage, closing, ipvs};
use crate::{
    actor::{
        abort_on_close, accept, connect, errno_name, error_now, keepalive, listen, receive_end,
        send, talk, try_connect, user_timeout, wait_acknowledged, wait_error, wait_unread,
    },
    expect::Incident,
    lab::{Lab, Net},
};

/// Ports of the server, and of the service in front of it.
const DIRECT: u16 = 3306;
const THROUGH_IPVS: u16 = 4306;
const TRANSLATED: u16 = 5306;
const REJECTED: u16 = 6306;
/// A port without a listener.
const CLOSED: u16 = 9306;
/// The first port of listeners for one connection each.
const CLOSING: u16 = 20_000;
/// The first client's port.
const CLIENTS: u16 = 42_000;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    CloseUnread,
    LingerZero,
    WriteAfterClose,
    KillOwner,
    CloseListener,
    Destroy,
    Reject,
    ExpireIpvs,
    DeleteConntrack,
    KeepaliveGone,
    UserTimeout,
    Refuse,
    HealthCheck,
    CloseOrderly,
}

/// The result of a step.
pub enum Turn {
    Went,
    /// Nothing happened: the step must wait.
    Waits,
    Done,
}

/// Sets up what all connections share: the service, the translation, the rules.
pub fn prepare(stage: &Stage<'_>) -> Result<()> {
    let (net, node, server) = (stage.net, stage.lab.node()?, stage.lab.server()?);
    ipvs::track(stage)?;
    ipvs::serve(stage, net.vip(THROUGH_IPVS), &[net.server(THROUGH_IPVS)], ipvs::TIMEOUT)?;
    node.nft(&format!(
        "table ip nat {{
            chain prerouting {{
                type nat hook prerouting priority -100;
                ip daddr {} tcp dport {TRANSLATED} dnat to {};
            }}
        }}
        table inet firewall {{
            chain forward {{
                type filter hook forward priority 0;
                tcp dport {REJECTED} tcp flags & (psh | ack) == (psh | ack) reject with tcp reset;
            }}
        }}",
        net.vip(0).ip(),
        net.server(0).ip(),
    ))?;
    server.nft(
        "table inet cut {
            set gone { type inet_service; }
            chain input { type filter hook input priority 0; tcp sport @gone drop; }
        }",
    )
}

/// The lab and the listeners of the connections.
pub struct Place<'a> {
    lab: &'a Lab,
    listeners: Vec<TcpListener>,
}

impl<'a> Place<'a> {
    pub fn open(net: Net, lab: &'a Lab) -> Result<Self> {
        let mut listeners = Vec::new();
        for port in [DIRECT, THROUGH_IPVS, TRANSLATED, REJECTED] {
            listeners.push(listen(lab.server()?, net.server(port))?);
        }
        for port in [DIRECT, REJECTED] {
            listeners.push(listen(lab.server()?, net.v6().server(port))?);
        }
        Ok(Self { lab, listeners })
    }

    pub fn listeners(self) -> impl Iterator<Item = TcpListener> {
        self.listeners.into_iter()
    }

    fn accept(&self, on: SocketAddr) -> Result<TcpStream> {
        let bound = |listener: &&TcpListener| listener.local_addr().is_ok_and(|it| it == on);
        accept(self.listeners.iter().find(bound).with_context(|| format!("no listener at {on}"))?)
    }
}

/// One connection and its progress.
pub struct Connection {
    kind: Kind,
    client_at: SocketAddr,
    /// As the client addresses it.
    service: SocketAddr,
    server_at: SocketAddr,
    client: Option<TcpStream>,
    server: Option<TcpStream>,
    listener: Option<TcpListener>,
    steps: u8,
    idle_since: Instant,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} ({:?}, step {})", self.client_at, self.service, self.kind, self.steps)
    }
}

impl Connection {
    pub fn new(kind: Kind, index: usize, net: Net) -> Self {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        // Translation and the service are IPv4 only.
        let translated = matches!(kind, Kind::ExpireIpvs | Kind::DeleteConntrack);
        let net = if index % 3 == 0 && !translated { net.v6() } else { net };
        let port = match kind {
            Kind::ExpireIpvs => THROUGH_IPVS,
            Kind::DeleteConntrack => TRANSLATED,
            Kind::Reject => REJECTED,
            Kind::Refuse => CLOSED,
            Kind::CloseListener => CLOSING + index,
            _ => DIRECT,
        };
        Self {
            kind,
            client_at: net.client(CLIENTS + index),
            service: if translated { net.vip(port) } else { net.server(port) },
            server_at: net.server(port),
            client: None,
            server: None,
            listener: None,
            steps: 0,
            idle_since: Instant::now(),
        }
    }

    /// The incident to expect; none for an orderly close. Victim and errno are checked by other scenarios: among so many
    /// connections, a socket may get its error after the incident has been printed.
    pub fn expected(&self) -> Option<Incident> {
        let incident = |cause| Incident::new(cause, self.client_at, self.service).observed();
        let by_server = |cause| incident(cause).origin("local_socket");
        Some(match self.kind {
            Kind::CloseUnread => by_server("close_unread_data"),
            Kind::LingerZero => by_server("linger_zero"),
            Kind::KillOwner => by_server("process_killed"),
            Kind::CloseListener => by_server("listener_closed"),
            Kind::WriteAfterClose => incident("data_after_close"),
            Kind::Destroy => by_server("socket_destroyed"),
            Kind::Reject => incident("firewall_reject").origin("netfilter"),
            Kind::ExpireIpvs => incident("ipvs_idle_expired")
                .nat(self.server_at)
                .origin("local_stack")
                .ipvs_timeout(ipvs::TIMEOUT),
            Kind::DeleteConntrack => {
                incident("conntrack_deleted").nat(self.server_at).origin("local_stack")
            }
            Kind::KeepaliveGone => incident("keepalive_exhausted").keepalive(true),
            Kind::UserTimeout => incident("user_timeout"),
            Kind::Refuse => incident("connection_refused"),
            Kind::HealthCheck => incident("handshake_rejected"),
            Kind::CloseOrderly => return None,
        })
    }

    /// Its sockets that are still open, because closing them would be another event.
    pub fn sockets(self) -> impl Iterator<Item = OwnedFd> {
        let streams = self.client.into_iter().chain(self.server).map(OwnedFd::from);
        streams.chain(self.listener.map(OwnedFd::from))
    }

    pub fn step(&mut self, place: &Place<'_>) -> Result<Turn> {
        let turn = match self.steps {
            0 => self.open(place)?,
            1 => self.lead_up(place)?,
            2 => self.break_it(place)?,
            _ => self.await_error()?,
        };
        if !matches!(turn, Turn::Waits) {
            self.steps += 1;
        }
        Ok(turn)
    }

    fn client(&self) -> Result<&TcpStream> {
        self.client.as_ref().context("the client's socket is gone")
    }

    fn server(&self) -> Result<&TcpStream> {
        self.server.as_ref().context("the server's socket is gone")
    }

    fn open(&mut self, place: &Place<'_>) -> Result<Turn> {
        let (client_ns, server_ns) = (place.lab.client()?, place.lab.server()?);
        match self.kind {
            Kind::Refuse => {
                let refused = try_connect(client_ns, self.client_at, self.service)?.err();
                ensure!(refused == Some(Errno::CONNREFUSED), "the connect ended in {refused:?}");
                return Ok(Turn::Done);
            }
            Kind::CloseListener => {
                self.listener = Some(listen(server_ns, self.server_at)?);
                self.client = Some(connect(client_ns, self.client_at, self.service)?);
                return Ok(Turn::Went);
            }
            _ => {}
        }
        let client = connect(client_ns, self.client_at, self.service)?;
        let server = place.accept(self.server_at)?;
        match self.kind {
            Kind::HealthCheck => {}
            // The rule would reject data from the client.
            Kind::Reject => send(&server, "8.0.36 greeting\n")?,
            _ => {
                talk(&client, &server)?;
            }
        }
        self.idle_since = Instant::now();
        (self.client, self.server) = (Some(client), Some(server));
        Ok(Turn::Went)
    }

    /// The step before the connection breaks.
    fn lead_up(&mut self, place: &Place<'_>) -> Result<Turn> {
        let (client_at, server_ns) = (self.client_at, place.lab.server()?);
        let cut = || {
            let port = client_at.port();
            server_ns.nft(&format!("add element inet cut gone {{ {port} }}"))
        };
        match self.kind {
            Kind::CloseUnread => send(self.client()?, "SELECT 2;\n")?,
            Kind::WriteAfterClose | Kind::CloseOrderly => self.server = None,
            Kind::KeepaliveGone => {
                keepalive(self.client()?, SECOND, SECOND, 2)?;
                cut()?;
            }
            Kind::UserTimeout => {
                user_timeout(self.client()?, 2 * SECOND)?;
                cut()?;
            }
            Kind::DeleteConntrack => {
                // An ACK after the deletion would create the entry again.
                wait_acknowledged(server_ns, client_at.port())?;
                let (ip, port) = (client_at.ip(), client_at.port());
                let tool = format!("conntrack -D -p tcp --orig-src {ip} --sport {port}");
                place.lab.node()?.run(&tool)?;
            }
            Kind::ExpireIpvs => {
                if self.idle_since.elapsed() < Duration::from_secs(ipvs::TIMEOUT) {
                    return Ok(Turn::Waits);
                }
                let table = ipvs::connections(place.lab.node()?)?;
                if ipvs::has_entry(&table, client_at.port()) {
                    return Ok(Turn::Waits);
                }
            }
            _ => {}
        }
        Ok(Turn::Went)
    }

    fn break_it(&mut self, place: &Place<'_>) -> Result<Turn> {
        match self.kind {
            Kind::CloseUnread => {
                wait_unread(self.server()?)?;
                self.server = None;
            }
            Kind::LingerZero => {
                abort_on_close(self.server()?)?;
                self.server = None;
            }
            Kind::HealthCheck => {
                abort_on_close(self.client()?)?;
                self.client = None;
            }
            Kind::KillOwner => {
                let server = self.server.take().context("the server's socket is gone")?;
                let client = self.client.take().context("the client's socket is gone")?;
                self.client = Some(closing::kill_with_unread(Pair { client, server })?);
            }
            Kind::CloseListener => self.listener = None,
            Kind::WriteAfterClose => {
                receive_end(self.client()?)?;
                send(self.client()?, "SELECT 2;\n")?;
            }
            Kind::CloseOrderly => {
                receive_end(self.client()?)?;
                self.client = None;
                return Ok(Turn::Done);
            }
            Kind::Destroy => {
                // With the brackets that IPv6 needs.
                let client = self.client_at;
                place.lab.server()?.run(&format!("ss -K dst {client}"))?;
            }
            Kind::Reject | Kind::ExpireIpvs | Kind::UserTimeout => {
                send(self.client()?, "SELECT 2;\n")?;
            }
            Kind::DeleteConntrack => send(self.server()?, "you have been idle\n")?,
            Kind::KeepaliveGone => {}
            Kind::Refuse => bail!("there is nothing left to break"),
        }
        Ok(Turn::Went)
    }

    /// Checks the victim's error: without it, nothing was provoked.
    fn await_error(&mut self) -> Result<Turn> {
        let (victim, wanted) = match self.kind {
            Kind::HealthCheck | Kind::DeleteConntrack => (self.server()?, Errno::CONNRESET),
            Kind::KeepaliveGone | Kind::UserTimeout => (self.client()?, Errno::TIMEDOUT),
            Kind::WriteAfterClose => (self.client()?, Errno::PIPE),
            _ => (self.client()?, Errno::CONNRESET),
        };
        let slow = matches!(self.kind, Kind::KeepaliveGone | Kind::UserTimeout);
        let errno = match error_now(victim)? {
            None if slow => return Ok(Turn::Waits),
            None => wait_error(victim)?,
            Some(errno) => errno,
        };
        ensure!(errno == wanted, "the error is {}", errno_name(errno));
        Ok(Turn::Done)
    }
}
