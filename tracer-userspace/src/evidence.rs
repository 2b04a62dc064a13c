//! What a cause may look at: the records of a case, the losses that could explain it, and the state
//! of the namespaces. Every look-back is here, once.

use std::{collections::BTreeMap, net::SocketAddr};

mod balanced;
mod translated;
mod views;
mod watched;

pub use watched::Watched;

pub use balanced::Balanced;
pub use translated::Translated;

use crate::{
    case::{At, Case},
    event::{
        AcceptQueue, ConntrackEnd, ConntrackInvalid, Flow, IpvsEnd, IpvsRemoval, IpvsServerRemoved,
        Nanos, NetfilterDrop, ResetReceived, ResetSent, Session, Socket, SocketError, Via,
        tcp_flag, tcp_state,
    },
    fix::Place,
    host::{IpvsEntry, IpvsService, NetnsReach, NetnsState},
    idle::{Ages, IdleAges},
    incident::Confidence,
    known::Known,
    memory::{IpvsServers, Loss, Memory, Remembered},
};

/// EPIPE, ECONNRESET, ETIMEDOUT, ECONNREFUSED (asm-generic/errno.h).
pub const EPIPE: u32 = 32;
/// See [`EPIPE`].
pub const ECONNRESET: u32 = 104;
/// See [`EPIPE`].
pub const ETIMEDOUT: u32 = 110;
/// See [`EPIPE`].
pub const ECONNREFUSED: u32 = 111;
/// See [`EPIPE`].
pub const ECONNABORTED: u32 = 103;

/// A loss and the packet it dooms can be one softirq apart, and stamps of segments are a jiffy
/// coarse (10 ms at HZ=100).
const TOLERANCE: Nanos = 12_000_000;

/// A reset answers a packet within a round trip.
const ANSWERED_WITHIN: Nanos = 1_000_000_000;

/// TCP_RTO_MAX (include/net/tcp.h), and a timer that fires late.
const LONGEST_RETRY: Nanos = 130_000_000_000;

const IPPROTO_TCP: u8 = 6;

/// `net.ipv4.ip_local_port_range` where it could not be read (net/ipv4/af_inet.c).
const DEFAULT_PORT_RANGE: (u16, u16) = (32768, 60999);

/// Latest known state of each namespace.
pub type Hosts = BTreeMap<u32, NetnsState>;

/// The evidence for one case.
pub struct Evidence<'a> {
    pub case: &'a Case,
    pub session: &'a Session,
    watched: &'a Watched,
    hosts: &'a Hosts,
    ipvs_servers: &'a IpvsServers,
    known: &'a Known,
    balanced: Option<Balanced<'a>>,
    translated: Option<Translated<'a>>,
    ipvs: Option<(&'a Remembered, &'a IpvsEnd)>,
    conntrack: Option<(&'a Remembered, &'a ConntrackEnd)>,
    /// An entry of the same tuple in another zone ended as well, and a packet does not tell its zone.
    zone_is_ambiguous: bool,
    drops: Vec<(&'a Remembered, &'a NetfilterDrop)>,
    invalid: Option<(&'a Remembered, &'a ConntrackInvalid)>,
    idle_ages: Option<&'a IdleAges>,
}

impl<'a> Evidence<'a> {
    pub fn new(
        case: &'a Case,
        memories: [&'a Memory; 2],
        ipvs_servers: &'a IpvsServers,
        hosts: &'a Hosts,
        known: &'a Known,
        watched: &'a Watched,
    ) -> Self {
        let mut evidence = Self {
            case,
            session: &watched.session,
            watched,
            hosts,
            ipvs_servers,
            known,
            balanced: None,
            translated: None,
            ipvs: None,
            conntrack: None,
            zone_is_ambiguous: false,
            drops: Vec::new(),
            invalid: None,
            idle_ages: None,
        };
        evidence.look_back(memories);
        evidence.invalid = evidence.find_invalid(memories);
        evidence.balanced = evidence.find_balanced();
        evidence.translated = evidence.find_translated();
        evidence
    }

    /// Finds the losses that may explain this case: earlier than it, later than the last segment that
    /// either end received, in a namespace of the case before any other, the newest first.
    fn look_back(&mut self, memories: [&'a Memory; 2]) {
        let alive = self.last_received();
        let namespaces = self.namespaces();
        let mut losses: Vec<&Remembered> = memories
            .into_iter()
            .flat_map(|memory| memory.of(self.case.identity.flows()))
            .filter(|loss| {
                // Retries renew a drop, and so does what the dead end still answers; both may come before
                // the judgement.
                let came = match &loss.loss {
                    Loss::Drop(_) => loss.since,
                    _ => loss.ts,
                };
                came <= self.case.opened.saturating_add(TOLERANCE)
                    && loss.ts.saturating_add(TOLERANCE) >= alive.unwrap_or(0)
                    && !self.is_elsewhere(loss)
                    && !self.was_translated_again(loss)
            })
            .collect();
        losses.sort_by_key(|loss| (namespaces.contains(&loss.netns), loss.ts));
        for loss in losses.into_iter().rev() {
            match &loss.loss {
                Loss::Ipvs(end) if self.ipvs.is_none() => self.ipvs = Some((loss, end)),
                // A plain entry is picked up again; one that IPVS took along is IPVS's own.
                Loss::Conntrack(end)
                    if self.conntrack.is_none()
                        && end.is_nat()
                        && !has(&end.stack, "ip_vs_conn_drop_conntrack") =>
                {
                    self.conntrack = Some((loss, end));
                }
                Loss::Conntrack(end) => self.zone_is_ambiguous |= self.is_in_other_zone(loss, end),
                Loss::Drop(drop) => self.drops.push((loss, drop)),
                _ => {}
            }
        }
        if alive.is_none() {
            self.keep_the_newest();
        }
    }

    /// The INVALID packet that this case's reset answers: it went untranslated to a host that did not
    /// know its tuple.
    fn find_invalid(
        &self,
        memories: [&'a Memory; 2],
    ) -> Option<(&'a Remembered, &'a ConntrackInvalid)> {
        let answered = match (self.stateless(), self.received()) {
            (Some(at), _) => at.it.trigger?.flow,
            (None, Some(at)) => at.it.socket.flow,
            (None, None) => return None,
        };
        let opened = self.case.opened;
        memories.into_iter().flat_map(|memory| memory.of(&[answered])).find_map(|loss| {
            let Loss::Invalid(invalid) = &loss.loss else {
                return None;
            };
            let before = loss.since <= opened.saturating_add(TOLERANCE);
            let just_now = opened.saturating_sub(loss.ts) <= ANSWERED_WITHIN;
            (invalid.packet.flow == answered && before && just_now).then_some((loss, &**invalid))
        })
    }

    /// Whether this is the end of the known entry's namesake in another conntrack zone.
    fn is_in_other_zone(&self, loss: &Remembered, end: &ConntrackEnd) -> bool {
        self.conntrack.is_some_and(|(known, entry)| {
            known.netns == loss.netns && entry.original == end.original && entry.zone != end.zone
        })
    }

    /// Without a local socket nothing says which of several losses it was: the newest is assumed.
    fn keep_the_newest(&mut self) {
        let ipvs = self.ipvs.map_or(0, |(loss, _)| loss.ts);
        let conntrack = self.conntrack.map_or(0, |(loss, _)| loss.ts);
        if ipvs < conntrack {
            self.ipvs = None;
        } else {
            self.conntrack = None;
        }
        let newest = ipvs.max(conntrack);
        self.drops.retain(|(loss, _)| loss.ts >= newest);
    }

    /// Whether a loss belongs to an equal tuple in another namespace: the packet that was answered is
    /// still addressed as the client sent it, so it met its entry where it was answered.
    fn is_elsewhere(&self, loss: &Remembered) -> bool {
        let as_sent = match &loss.loss {
            Loss::Ipvs(end) => end.virtual_flow,
            Loss::Conntrack(end) => end.original,
            Loss::Drop(_) | Loss::Invalid(_) => return false,
        };
        self.stateless().is_some_and(|at| {
            at.netns != loss.netns && at.it.trigger.is_some_and(|trigger| trigger.flow == as_sent)
        })
    }

    /// Whether the packet that was answered had been translated as before: it had made a new entry, or
    /// IPVS had taken it without one, and what it did not find at its end is not this loss's doing.
    fn was_translated_again(&self, loss: &Remembered) -> bool {
        let [there, back] = match &loss.loss {
            Loss::Ipvs(end) if end.real_flow != end.virtual_flow => {
                [end.real_flow, end.virtual_flow]
            }
            Loss::Conntrack(end) if end.is_nat() => [end.reply.reversed(), end.original],
            _ => return false,
        };
        let answered = self.stateless().and_then(|at| at.it.trigger);
        answered.is_some_and(|trigger| trigger.flow == there || trigger.flow == back.reversed())
    }

    /// Where the case's records were made.
    pub fn namespaces(&self) -> Vec<u32> {
        let case = self.case;
        (case.sent.iter().map(|at| at.netns))
            .chain(case.received.iter().map(|at| at.netns))
            .chain(case.errors.iter().map(|at| at.netns))
            .chain(case.drops.iter().map(|at| at.netns))
            .collect()
    }

    /// When tracing began: older state may have died unseen.
    pub fn started(&self) -> Nanos {
        self.watched.started
    }

    // ---- the reset ----

    /// The first reset this host sent in this case.
    pub fn sent(&self) -> Option<&'a At<ResetSent>> {
        self.case.sent.first()
    }

    /// The first reset a socket of this host received.
    pub fn received(&self) -> Option<&'a At<ResetReceived>> {
        self.case.received.first()
    }

    /// A reset that a local socket sent of its own accord.
    pub fn active(&self) -> Option<&'a At<ResetSent>> {
        self.case.sent.iter().find(|at| at.it.trigger.is_none() && at.it.socket.is_some())
    }

    /// A firewall rule's reset.
    pub fn rejected(&self) -> Option<&'a At<ResetSent>> {
        self.case.sent.iter().find(|at| at.it.via == Via::Netfilter)
    }

    /// A reset sent for a mid-stream packet by a stack that has no connection for it: no socket, or
    /// a listener that never had it.
    pub fn stateless(&self) -> Option<&'a At<ResetSent>> {
        self.case.sent.iter().find(|at| at.it.met_no_connection())
    }

    /// Whether the connection was still being made: such a reset never tells of lost state.
    pub fn is_handshake(&self) -> bool {
        let answers_syn = self
            .case
            .sent
            .iter()
            .any(|at| at.it.trigger.is_some_and(|trigger| trigger.has(tcp_flag::SYN)));
        let connecting = self.case.received.iter().any(|at| {
            matches!(
                at.it.socket.state,
                tcp_state::SYN_SENT | tcp_state::SYN_RECV | tcp_state::NEW_SYN_RECV
            )
        });
        // By the time of its error a socket is closed; one that never heard anything was connecting.
        let gave_up = self
            .case
            .errors
            .iter()
            .any(|at| at.it.socket.state == tcp_state::SYN_SENT || at.it.socket.rcv_nxt == 0);
        answers_syn || connecting || gave_up
    }

    /// A lost entry can explain this: the reset came from somebody without state, or nobody answered
    /// at all. A living socket's abort is never explained by a lost entry.
    pub fn looks_like_lost_state(&self) -> bool {
        if self.is_handshake() || self.active_abort() || self.rejected().is_some() {
            return false;
        }
        if self.sent().is_some() {
            return self.stateless().is_some() && !self.listen_overflowed();
        }
        match self.received() {
            // Without the packet the sender is not known: the loss itself has to convince.
            Some(at) => at.it.packet.is_none_or(|packet| !packet.has(tcp_flag::ACK)),
            None => self.timed_out().is_some(),
        }
    }

    /// A local socket aborted on purpose (as opposed to a keepalive timer giving up).
    fn active_abort(&self) -> bool {
        self.active().is_some() && self.timed_out().is_none()
    }

    /// The newest reading of the accept queue at an address of this host, and its namespace.
    pub fn accept_queue(&self, address: SocketAddr) -> Option<&'a (u32, AcceptQueue)> {
        self.known.queue(address)
    }

    /// The reset of a connection that nobody had accepted when its listener closed.
    pub fn listener_stopped(&self) -> Option<&'a At<ResetSent>> {
        self.active().filter(|at| {
            has(&at.it.stack, "inet_csk_listen_stop") || has(&at.it.stack, "inet_child_forget")
        })
    }

    /// A finished handshake found the accept queue full: `tcp_check_req` resets it when
    /// `tcp_abort_on_overflow` is set. A bad SYN takes the same path, so the packet must be a bare ACK.
    pub fn listen_overflowed(&self) -> bool {
        self.case.sent.iter().any(|at| {
            let sent = &at.it;
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

    /// Whether a reset of this case that nobody here sent is somebody else's.
    pub fn sees_every_reset(&self) -> bool {
        self.watched.saw_every_reset(self.case.opened)
    }

    /// Whether a rule that answered in this case would have been seen.
    pub fn sees_every_rule(&self) -> bool {
        self.watched.saw_every_rule(self.case.opened)
    }

    /// Whether records of this case may be missing.
    pub fn lost_records(&self) -> bool {
        self.watched.lost_records(self.case.opened)
    }

    // ---- the victim ----

    /// The error that woke an application. The closer's own ECONNRESET after SO_LINGER 0 or
    /// connect(AF_UNSPEC) is no victim's.
    pub fn error(&self) -> Option<&'a At<SocketError>> {
        let closer = self.active().and_then(|at| at.it.socket.as_ref()).map(|socket| socket.id);
        self.case.errors.iter().find(|at| {
            let socket = &at.it.socket;
            !(Some(socket.id) == closer && socket.err == ECONNRESET)
        })
    }

    /// The error that an application was given, or is about to be given for a reset.
    pub fn errno(&self) -> Option<u32> {
        let reported = self.error().map(|at| at.it.socket.err);
        reported.or_else(|| self.case.received.iter().find_map(|at| at.it.errno()))
    }

    /// ETIMEDOUT, or the ICMP error that takes its place when the retries end.
    pub fn timed_out(&self) -> Option<&'a At<SocketError>> {
        let gave_up = ["tcp_retransmit_timer", "tcp_keepalive_timer", "tcp_write_timer"];
        self.case.errors.iter().find(|at| {
            at.it.socket.err == ETIMEDOUT
                || (at.it.socket.err_soft != 0
                    && gave_up.iter().any(|name| has(&at.it.stack, name)))
        })
    }

    /// Sockets of this host that lost their connection, the first to do so first.
    pub fn victims(&self) -> impl Iterator<Item = (u32, Nanos, &'a Socket)> + '_ {
        let closer = self.active().and_then(|at| at.it.socket.as_ref()).map(|socket| socket.id);
        let errors = self
            .case
            .errors
            .iter()
            .map(|at| (at.netns, at.ts, &at.it.socket))
            .filter(|(_, _, socket)| !(Some(socket.id) == closer && socket.err == ECONNRESET));
        let received = self.case.received.iter().map(|at| (at.netns, at.ts, &at.it.socket));
        let mut victims: Vec<_> = received.chain(errors).collect();
        victims.sort_by_key(|(_, ts, _)| *ts);
        victims.into_iter()
    }

    /// The first of [`Self::victims`].
    pub fn victim(&self) -> Option<(u32, Nanos, &'a Socket)> {
        self.victims().next()
    }

    /// When a victim last heard from its peer, the later of both ends; `None` when none is on this host.
    pub fn last_received(&self) -> Option<Nanos> {
        self.victims().filter_map(|(_, _, socket)| socket.last_received).max()
    }

    /// How long nothing had come in when it broke, seconds.
    pub fn idle_s(&self) -> Option<f64> {
        let client_heard = (self.balanced.and_then(|it| it.client_heard()))
            .or_else(|| self.translated.and_then(|it| it.client_heard()));
        let last = match (self.last_received().max(client_heard), self.ipvs) {
            (Some(last), _) => last,
            (None, Some((_, end))) => end.last_packet?,
            (None, None) => self.active()?.it.socket.as_ref()?.last_received?,
        };
        Some(seconds(self.case.opened.saturating_sub(last)))
    }

    /// A victim had received the FIN of its peer before the reset.
    pub fn peer_closed(&self) -> bool {
        let closed = [tcp_state::CLOSE_WAIT, tcp_state::LAST_ACK, tcp_state::CLOSING];
        self.case.received.iter().any(|at| closed.contains(&at.it.socket.state))
    }

    /// Some payload went over this connection, as far as anybody here can tell.
    pub fn was_used(&self) -> bool {
        let sockets = self
            .victims()
            .map(|(_, _, socket)| socket)
            .chain(self.case.sent.iter().filter_map(|at| at.it.socket.as_ref()));
        let by_socket = sockets.filter(|s| s.is_connection()).any(|socket| !socket.never_used());
        by_socket || self.trigger_payload() > 0
    }

    /// Payload of the packet that was answered with a reset, bytes.
    pub fn trigger_payload(&self) -> u32 {
        self.case.sent.iter().filter_map(|at| at.it.trigger).map(|t| t.payload).max().unwrap_or(0)
    }

    // ---- what was lost before ----

    /// The IPVS entry of this connection, if its end is on record and fits.
    pub fn ipvs(&self) -> Option<(&'a Remembered, &'a IpvsEnd)> {
        self.ipvs
    }

    /// Its IPVS entry, found without its real server when it timed out or its packet was dropped.
    pub fn ipvs_orphan(&self) -> Option<&'a At<IpvsEntry>> {
        let case = self.case;
        // An answer may come only after its packet's case was closed; the next retry is dropped as well.
        let asked_for = |ts| {
            let drops = case.drops.iter().filter(|at| at.it.no_destination).map(|at| at.ts);
            case.errors.iter().any(|at| at.ts == ts)
                || drops.into_iter().any(|at| ts <= at && at - ts <= LONGEST_RETRY)
        };
        self.ipvs_servers.orphans(self.case.identity.flows()).find(|at| asked_for(at.ts))
    }

    /// The removal of its real server from IPVS, of those that came before it broke and after it was
    /// last alive.
    pub fn ipvs_server_removed(
        &self,
        netns: u32,
        virtual_flow: Flow,
        real_flow: Flow,
    ) -> Option<&'a At<IpvsServerRemoved>> {
        let alive = self.last_received().unwrap_or(0);
        self.ipvs_servers
            .removals(netns, virtual_flow, real_flow)
            .find(|at| at.ts <= self.case.opened && at.ts.saturating_add(TOLERANCE) >= alive)
    }

    /// The removal of a server together with its IPVS service, of those that came before it broke and after
    /// it was last alive.
    pub fn ipvs_service_removed(
        &self,
        netns: u32,
        service: SocketAddr,
    ) -> Option<&'a At<IpvsServerRemoved>> {
        let alive = self.last_received().unwrap_or(0);
        self.ipvs_servers
            .removals_of(netns, service)
            .find(|at| at.ts <= self.case.opened && at.ts.saturating_add(TOLERANCE) >= alive)
            .filter(|at| at.it.removal() != IpvsRemoval::Server)
    }

    /// The NAT entry of this connection, if its end is on record and fits, and IPVS did not take it
    /// along.
    pub fn conntrack(&self) -> Option<(&'a Remembered, &'a ConntrackEnd)> {
        self.conntrack
    }

    /// Adds what is known of other connections to the same service.
    pub fn with_idle_ages(self, ages: &'a IdleAges) -> Self {
        Self { idle_ages: Some(ages), ..self }
    }

    /// At which idle ages connections to this one's service broke and survived.
    pub fn idle_ages(&self) -> Option<&'a Ages> {
        self.idle_ages?.of(self.client_view()?.dst)
    }

    /// The packet of this connection that conntrack judged INVALID and whose answer this reset is.
    pub fn invalid(&self) -> Option<(&'a Remembered, &'a ConntrackInvalid)> {
        self.invalid
    }

    /// Both tuples of the conntrack entry that translates this connection, as far as a record of it
    /// tells: original and reply.
    pub fn nat_tuples(&self) -> Option<(Flow, Flow)> {
        let ended = self.conntrack.map(|(_, end)| (end.original, end.reply));
        let invalid = self.invalid.map(|(_, it)| (it.original, it.reply));
        let clash = self
            .drops
            .iter()
            .find_map(|(_, drop)| Some((drop.packet.flow, drop.clash?.reversed())));
        let rejected = self.drops.iter().find_map(|(_, drop)| drop.nat);
        let rejected = rejected.map(|nat| (nat.original, nat.reply));
        ended.or(invalid).or(clash).or(rejected)
    }

    /// Some loss of this connection is on record, whether or not a cause knows its kind: then "no socket
    /// here" is not the whole story.
    pub fn has_loss(&self) -> bool {
        self.ipvs.is_some() || self.conntrack.is_some()
    }

    /// How sure a lost entry makes it: its end was seen; was the reset's sender, too?
    pub fn lost_entry_confidence(&self) -> Confidence {
        match self.stateless() {
            Some(_) if !self.zone_is_ambiguous => Confidence::Observed,
            _ => Confidence::Correlated,
        }
    }

    /// The test that would settle which loss it was, where the victim is not on this host.
    pub fn newest_assumed(&self) -> Option<&'static str> {
        self.last_received().is_none().then_some(
            "its socket is not on this host, so the newest loss of this tuple is assumed: compare with \
             when the client last heard from the server",
        )
    }

    /// Packets of this connection that netfilter dropped, newest first.
    pub fn drops(&self) -> &[(&'a Remembered, &'a NetfilterDrop)] {
        &self.drops
    }

    /// How long before the incident something happened, seconds; negative when after.
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    pub fn age_s(&self, ts: Nanos) -> f64 {
        (self.case.opened as f64 - ts as f64) / 1e9
    }

    // ---- namespaces ----

    pub fn host(&self, netns: u32) -> Option<&'a NetnsState> {
        self.hosts.get(&netns)
    }

    /// Where a person goes to change something in a namespace.
    pub fn place(&self, netns: u32) -> Place {
        let reach = match self.hosts.get(&netns) {
            Some(host) => host.reach.clone(),
            None if netns == self.session.initial_netns && netns != 0 => NetnsReach::Initial,
            None => NetnsReach::Unknown,
        };
        Place { netns, reach }
    }

    /// The namespace with an IPVS service at an address.
    pub fn balancer_of(&self, address: SocketAddr) -> Option<u32> {
        self.hosts.keys().copied().find(|netns| self.ipvs_service(*netns, address).is_some())
    }

    /// The IPVS service behind an address, in a given namespace.
    pub fn ipvs_service(&self, netns: u32, address: SocketAddr) -> Option<&'a IpvsService> {
        self.hosts.get(&netns)?.ipvs.as_ref()?.services.as_ref()?.iter().find(|service| {
            service.protocol == IPPROTO_TCP
                && service.ip == address.ip()
                && service.port == address.port()
        })
    }
}

/// Whether a stack passes through a function (or the part of it that gcc split off).
pub fn has(stack: &[Box<str>], function: &str) -> bool {
    stack.iter().any(|name| {
        name.strip_prefix(function).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
pub fn seconds(ns: Nanos) -> f64 {
    ns as f64 / 1e9
}
