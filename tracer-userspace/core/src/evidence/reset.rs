//! How a connection broke: its resets, errors and victims.

use std::net::SocketAddr;

use rsttrace_model::{
    errno::{ECONNRESET, ETIMEDOUT},
    flow::Nanos,
    lookup::AcceptQueue,
    socket::SocketState,
    tcp_flag, tcp_state,
};

use super::{
    closed::ResettingEnd,
    facts::{Evidence, seconds},
};
use crate::{
    case::Stamped,
    event::{Packet, ResetReceived, ResetSent, Socket, SocketError, Via, has},
};

impl<'a> Evidence<'a> {
    /// The first reset this host sent in this case.
    pub fn sent(&self) -> Option<&'a Stamped<ResetSent>> {
        self.case.sent.first()
    }

    /// The first reset a socket of this host received.
    pub fn received(&self) -> Option<&'a Stamped<ResetReceived>> {
        self.case.received.first()
    }

    /// A reset that a local socket sent actively, not in answer to a packet.
    pub fn active(&self) -> Option<&'a Stamped<ResetSent>> {
        self.case.sent.iter().find(|at| at.value.trigger.is_none() && at.value.socket.is_some())
    }

    /// A firewall rule's reset.
    pub fn rejected(&self) -> Option<&'a Stamped<ResetSent>> {
        self.case.sent.iter().find(|at| at.value.via == Via::Netfilter)
    }

    /// A reset sent for a mid-stream packet by a stack that has no connection for it: no socket, or
    /// a listener that never had it.
    pub fn stateless(&self) -> Option<&'a Stamped<ResetSent>> {
        self.case.sent.iter().find(|at| at.value.has_no_matching_socket())
    }

    /// Whether the handshake was not complete. Such a reset is never caused by lost state.
    pub fn is_handshake(&self) -> bool {
        let answers_syn = self
            .case
            .sent
            .iter()
            .any(|at| at.value.trigger.is_some_and(|trigger| trigger.has(tcp_flag::SYN)));
        let connecting = self.case.received.iter().any(|at| {
            matches!(
                at.value.socket.state,
                tcp_state::SYN_SENT | tcp_state::SYN_RECV | tcp_state::NEW_SYN_RECV
            )
        });
        // A socket is closed when it gets its error. A socket that never received anything was
        // connecting.
        let gave_up =
            self.case.errors.iter().any(|at| {
                at.value.socket.state == tcp_state::SYN_SENT || at.value.socket.rcv_nxt == 0
            });
        answers_syn || connecting || gave_up
    }

    /// Whether a lost entry can explain this case: the sender of the reset had no state, or the peer did not
    /// answer. A lost entry never explains the abort of an open socket.
    pub fn looks_like_lost_state(&self) -> bool {
        if self.is_handshake() || self.active_abort() {
            return false;
        }
        if matches!(self.resetting_end(), ResettingEnd::ClientShut | ResettingEnd::Closed(_)) {
            return false;
        }
        // A rule sent the reset, or drops the packets.
        if self.rejected().is_some() || self.plain_loss().is_some() {
            return self.plain_loss().is_some();
        }
        if self.sent().is_some() {
            return self.stateless().is_some() && !self.listen_overflowed();
        }
        match self.received() {
            // Without the packet its sender is unknown, so only the loss itself counts.
            Some(at) => at.value.packet.is_none_or(|packet| !packet.has(tcp_flag::ACK)),
            None => self.timed_out().is_some(),
        }
    }

    /// Whether a local socket aborted actively, and not because its retries were exhausted.
    fn active_abort(&self) -> bool {
        self.active().is_some() && self.timed_out().is_none()
    }

    /// The newest reading of the accept queue at an address of this host, and its namespace.
    pub fn accept_queue(&self, address: SocketAddr) -> Option<&'a (u32, AcceptQueue)> {
        self.baseline.queue(address)
    }

    /// The reset of a connection that no process had accepted when its listener closed.
    pub fn listener_stopped(&self) -> Option<&'a Stamped<ResetSent>> {
        self.active().filter(|at| {
            has(&at.value.stack, "inet_csk_listen_stop")
                || has(&at.value.stack, "inet_child_forget")
        })
    }

    /// A finished handshake found the accept queue full: `tcp_check_req` resets it when
    /// `tcp_abort_on_overflow` is set. A bad SYN takes the same path, so the packet must be a bare ACK.
    pub fn listen_overflowed(&self) -> bool {
        self.case.sent.iter().any(|at| {
            let sent = &at.value;
            let ack_only =
                sent.trigger.is_some_and(|t| t.has(tcp_flag::ACK) && !t.has(tcp_flag::SYN));
            let by_kernel = match sent.reason.as_deref() {
                Some(reason) => reason == "INVALID_SYN",
                None => {
                    has(&sent.stack, "tcp_check_req")
                        && sent
                            .socket
                            .as_ref()
                            .is_some_and(|socket| socket.ack_backlog > socket.max_ack_backlog)
                }
            };
            ack_only && by_kernel
        })
    }

    /// Whether a reset of this case without a record of its sending comes from a remote host.
    pub fn sees_every_reset(&self) -> bool {
        self.coverage.saw_every_reset(self.case.opened)
    }

    /// The peer of the socket that received the reset, if it is on this host and was still open after the reset.
    pub fn living_peer(&self) -> Option<(u32, &'a SocketState)> {
        let at = self.received()?;
        let (netns, peer) = self.baseline.peer(at.value.socket.flow.reversed())?;
        let is_later = peer.read >= at.ts && peer.socket.inode != 0;
        let is_open = matches!(peer.socket.state, tcp_state::ESTABLISHED | tcp_state::CLOSE_WAIT);
        (is_later && is_open).then_some((*netns, &peer.socket))
    }

    /// Whether records of this case may be missing.
    pub fn lost_records(&self) -> bool {
        self.coverage.lost_records(self.case.opened)
    }

    /// The error that an application got. The ECONNRESET of the closing socket after SO_LINGER 0 or
    /// connect(AF_UNSPEC) does not count: that socket is not a victim.
    pub fn error(&self) -> Option<&'a Stamped<SocketError>> {
        let closer = self.active().and_then(|at| at.value.socket.as_ref()).map(|socket| socket.id);
        self.case.errors.iter().find(|at| {
            let socket = &at.value.socket;
            !(Some(socket.id) == closer && socket.err == ECONNRESET)
        })
    }

    /// The error that an application got, or will get because of a reset.
    pub fn errno(&self) -> Option<u32> {
        let reported = self.error().map(|at| at.value.socket.err);
        reported.or_else(|| self.case.received.iter().find_map(|at| at.value.errno()))
    }

    /// ETIMEDOUT, or the ICMP error that takes its place when the retries end.
    pub fn timed_out(&self) -> Option<&'a Stamped<SocketError>> {
        let gave_up = ["tcp_retransmit_timer", "tcp_keepalive_timer", "tcp_write_timer"];
        self.case.errors.iter().find(|at| {
            at.value.socket.err == ETIMEDOUT
                || (at.value.socket.err_soft != 0
                    && gave_up.iter().any(|name| has(&at.value.stack, name)))
        })
    }

    /// Sockets of this host that lost their connection, in the order in which they lost it.
    pub fn victims(&self) -> impl Iterator<Item = (u32, Nanos, &'a Socket)> + '_ {
        let closer = self.active().and_then(|at| at.value.socket.as_ref()).map(|socket| socket.id);
        let errors = self
            .case
            .errors
            .iter()
            .map(|at| (at.netns, at.ts, &at.value.socket))
            .filter(|(_, _, socket)| !(Some(socket.id) == closer && socket.err == ECONNRESET));
        let received = self.case.received.iter().map(|at| (at.netns, at.ts, &at.value.socket));
        let mut victims: Vec<_> = received.chain(errors).collect();
        victims.sort_by_key(|(_, ts, _)| *ts);
        victims.into_iter()
    }

    /// The first of [`Self::victims`].
    pub fn victim(&self) -> Option<(u32, Nanos, &'a Socket)> {
        self.victims().next()
    }

    /// When a victim last received from its peer, the later of both ends; `None` when no victim is on this
    /// host.
    pub fn last_received(&self) -> Option<Nanos> {
        self.victims().filter_map(|(_, _, socket)| socket.last_received).max()
    }

    /// How long the connection had received nothing when it broke, seconds.
    pub fn idle_s(&self) -> Option<f64> {
        let client_heard = (self.balanced.and_then(|it| it.client_heard()))
            .or_else(|| self.translated.and_then(|it| it.client_heard()));
        let last = match (self.last_received().max(client_heard), self.ipvs) {
            (Some(last), _) => last,
            (None, Some((_, end))) => end.last_packet?,
            (None, None) => self.active()?.value.socket.as_ref()?.last_received?,
        };
        Some(seconds(self.case.opened.saturating_sub(last)))
    }

    /// Whether a victim had received the FIN of its peer before the reset.
    pub fn peer_closed(&self) -> bool {
        let closed = [tcp_state::CLOSE_WAIT, tcp_state::LAST_ACK, tcp_state::CLOSING];
        self.case.received.iter().any(|at| closed.contains(&at.value.socket.state))
    }

    /// Whether this connection carried payload, as far as this host knows it: by one of its sockets, a recorded
    /// end, or the connections that existed when tracing began. The packet that was answered shows nothing: a
    /// scan has payload too.
    pub fn was_used(&self) -> bool {
        let sockets = self
            .victims()
            .map(|(_, _, socket)| socket)
            .chain(self.case.sent.iter().filter_map(|at| at.value.socket.as_ref()));
        let by_socket = sockets.filter(|s| s.is_connection()).any(|socket| !socket.never_used());
        let existed = || {
            let packets = self.case.sent.iter().filter_map(|at| Some((at, at.value.trigger?)));
            packets.into_iter().any(|(at, packet)| {
                at.value.end.is_some()
                    || self.baseline.peers_of(packet.flow.src).contains(&packet.flow.dst)
                    || self.baseline.server(at.netns, packet.flow).is_some()
            })
        };
        by_socket || existed()
    }

    /// Whether a socket of this host lost a connection that had carried payload.
    pub fn broke_a_used_connection(&self) -> bool {
        let mut victims = self.victims().map(|(_, _, socket)| socket);
        victims.any(|socket| socket.is_connection() && !socket.dead && !socket.never_used())
    }

    /// Whether a victim is on this host and none of the victims ever received payload: the server may never have
    /// had the connection.
    pub fn victims_received_nothing(&self) -> bool {
        let mut victims = self.victims().peekable();
        victims.peek().is_some() && victims.all(|(_, _, socket)| socket.bytes_received == 0)
    }

    /// Whether a FIN came late, of a connection that its sender had closed or that nothing here remembers. Nothing breaks:
    /// its sender sends no more.
    pub fn is_late_fin(&self) -> bool {
        let packet = self.stateless().and_then(|at| at.value.trigger);
        let is_fin = packet.is_some_and(|packet| packet.has(tcp_flag::FIN) && packet.payload == 0);
        let had_closed = self.ipvs.is_none_or(|(_, end)| end.client_had_closed());
        is_fin && self.victim().is_none() && had_closed && self.conntrack.is_none()
    }

    /// The segment of a connection that nothing here remembers: no socket, entry or end. Scans look like that.
    pub fn unmatched(&self) -> Option<Packet> {
        let packet = self.stateless()?.value.trigger?;
        (self.victim().is_none() && !self.was_used() && !self.has_loss()).then_some(packet)
    }
}
