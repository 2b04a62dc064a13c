//! A case: the records of one broken connection, while they arrive.
//!
//! Records of one connection arrive from both ends, from several namespaces and from both sides of
//! NAT. They belong together when they name the same socket, when a reset sent and a reset received
//! carry the same sequence number (NAT leaves it alone), or when their tuples are equal and their
//! sequence numbers do not say otherwise.

use rsttrace_model::{
    flow::{Flow, Nanos},
    tcp_flag, tcp_state,
};

use crate::event::{Event, Packet, PacketDrop, ResetReceived, ResetSent, Socket, SocketError};

/// The content of a record with its time and network namespace.
#[derive(Clone, Debug)]
pub struct Stamped<T> {
    pub ts: Nanos,
    pub netns: u32,
    pub value: T,
}

/// A record that opens or joins a case.
#[derive(Clone, Debug)]
pub enum Record {
    Sent(Stamped<ResetSent>),
    Received(Stamped<ResetReceived>),
    Error(Stamped<SocketError>),
    Drop(Stamped<PacketDrop>),
}

/// Sequence numbers that one side has sent and that are not acknowledged yet: a range for a socket, one
/// number for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: u32,
    to: u32,
}

/// The sequence numbers of both directions of a connection, in any order; `None` where a record shows only
/// one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Anchor(Option<Span>, Option<Span>);

/// The sequence numbers of two records of one connection overlap, or are at most this far apart (data sent in
/// between). The distance must stay small: initial sequence numbers of one tuple advance by one every 64 ns
/// (net/core/secure_seq.c), so a reused tuple is 16 KiB away after 1 ms.
const ANCHOR_DISTANCE: u32 = 1 << 14;

/// The same for one of the two directions of an unchanged tuple: a connection that breaks can have a whole window in
/// flight (at most 2^30, RFC 7323 section 2.3), and each of its segments is answered with a reset. The other
/// direction shows that it is the same connection.
const WINDOW: u32 = 1 << 30;

/// The index finds sequence numbers by blocks of 2^20: the widest span has 4096 blocks, and a block is larger
/// than the distance that is allowed where tuples differ.
const BLOCK_BITS: u32 = 20;

/// A reset is received within the softirq that sent it, or after one trip through a slow guest.
const SAME_RESET_NS: Nanos = 1_000_000_000;

/// The longest time between two BPF programs that record the same event of a tracepoint; the task may be
/// preempted between them.
const DUPLICATE_NS: Nanos = 100_000_000;

/// Records kept of each kind: enough for every namespace that a reset passes. More retries add nothing.
const MAX_RECORDS: usize = 16;

impl Span {
    fn at(seq: u32) -> Self {
        Self { from: seq, to: seq }
    }

    fn width(&self) -> u32 {
        self.to.wrapping_sub(self.from)
    }

    /// The blocks that hold the numbers of this span and the numbers up to `distance` from it.
    fn blocks(self, distance: u32) -> impl Iterator<Item = u32> {
        let first = self.from.wrapping_sub(distance);
        let span = self.to.wrapping_sub(self.from).saturating_add(2 * distance);
        // One step per block, and the last number.
        let steps = (0..span).step_by(1 << BLOCK_BITS).chain([span]);
        steps.map(move |step| first.wrapping_add(step) >> BLOCK_BITS)
    }

    fn near(self, other: Self, distance: u32) -> bool {
        let starts_in = |a: Self, b: Self| {
            let reach = b.to.wrapping_sub(b.from).saturating_add(2 * distance);
            a.from.wrapping_sub(b.from.wrapping_sub(distance)) <= reach
        };
        starts_in(self, other) || starts_in(other, self)
    }
}

impl Anchor {
    fn fits(self, other: Self) -> bool {
        self.fits_within(other, ANCHOR_DISTANCE)
    }

    /// The same for an unchanged tuple, where one direction may be a whole window away.
    fn fits_in_window(self, other: Self) -> bool {
        let known = [self.0, self.1, other.0, other.1].iter().all(Option::is_some);
        known && self.fits_within(other, WINDOW)
    }

    /// Whether one direction fits, and the other within `distance`.
    fn fits_within(self, other: Self, distance: u32) -> bool {
        let near = |a: Option<Span>, b: Option<Span>, distance| match (a, b) {
            (Some(a), Some(b)) => a.near(b, distance),
            _ => true,
        };
        let pair = |[a, b]: [Option<Span>; 2], [c, d]: [Option<Span>; 2]| {
            (near(a, b, ANCHOR_DISTANCE) && near(c, d, distance))
                || (near(a, b, distance) && near(c, d, ANCHOR_DISTANCE))
        };
        // Where neither side has received from its peer, both spans are the initiator's.
        let initiators = self.1.is_none() && other.1.is_none();
        pair([self.0, other.0], [self.1, other.1])
            || (!initiators && pair([self.0, other.1], [self.1, other.0]))
    }

    /// Both directions are known in both anchors and agree. NAT may hide the tuple, but not sequence numbers.
    fn is_same(self, other: Self) -> bool {
        let known = [self.0, self.1, other.0, other.1].iter().all(Option::is_some);
        known && self.fits(other)
    }

    fn of_socket(socket: &Socket) -> Option<Self> {
        if !socket.is_connection() || socket.snd_nxt == 0 {
            return None;
        }
        let sent = Span { from: socket.snd_una, to: socket.snd_nxt };
        let received = (socket.rcv_nxt != 0).then(|| Span::at(socket.rcv_nxt));
        Some(Self(Some(sent), received))
    }

    fn of_packet(packet: &Packet) -> Self {
        let ack = packet.has(tcp_flag::ACK).then(|| Span::at(packet.ack));
        Self(Some(Span::at(packet.seq)), ack)
    }
}

impl Record {
    /// The record in an event; `None` if the event does not belong in a case.
    pub fn from_event(event: Event) -> Option<Self> {
        use crate::event::Body;
        let Event { ts, netns, body } = event;
        Some(match body {
            // Nothing was sent.
            Body::ResetSent(it) if !it.was_sent() => return None,
            Body::ResetSent(it) => Self::Sent(Stamped { ts, netns, value: *it }),
            Body::ResetReceived(it) => Self::Received(Stamped { ts, netns, value: *it }),
            Body::SocketError(it) => Self::Error(Stamped { ts, netns, value: *it }),
            Body::PacketDrop(it) => Self::Drop(Stamped { ts, netns, value: *it }),
            Body::Session(_)
            | Body::IpvsEnd(_)
            | Body::IpvsServerRemoved(_)
            | Body::IpvsOrphan(_)
            | Body::ConntrackEnd(_)
            | Body::NatChainRemoved(_)
            | Body::ConntrackInvalid(_)
            | Body::Netns(_)
            | Body::Owner { .. }
            | Body::Process { .. }
            | Body::Survived { .. }
            | Body::InitialState(_)
            | Body::StateLookup(_)
            | Body::EndedSockets(_)
            | Body::FilteredFlow(_)
            | Body::FilterRules(_)
            | Body::RejectingRules(_)
            | Body::PeerSocket(_)
            | Body::AcceptQueue(_)
            | Body::Lost(_)
            | Body::SkippedRuns(_)
            | Body::Tick
            | Body::Unknown { .. } => return None,
        })
    }

    pub fn ts(&self) -> Nanos {
        match self {
            Self::Sent(at) => at.ts,
            Self::Received(at) => at.ts,
            Self::Error(at) => at.ts,
            Self::Drop(at) => at.ts,
        }
    }

    pub fn netns(&self) -> u32 {
        match self {
            Self::Sent(at) => at.netns,
            Self::Received(at) => at.netns,
            Self::Error(at) => at.netns,
            Self::Drop(at) => at.netns,
        }
    }

    /// The number of the reset in this record, by which its case is found.
    pub fn reset_number(&self) -> Option<u32> {
        self.reset().map(|reset| reset.number)
    }

    /// The blocks among [`Identity::blocks`] in which connections with the same sequence numbers in both
    /// directions are found.
    pub fn blocks(&self) -> impl Iterator<Item = u32> {
        let spans = match self.anchor() {
            Some(Anchor(Some(one), Some(other))) => [Some(one), Some(other)],
            _ => [None; 2],
        };
        spans.into_iter().flatten().flat_map(|span| span.blocks(ANCHOR_DISTANCE))
    }

    /// The tuple, where the record still has one.
    pub fn flow(&self) -> Option<Flow> {
        match self {
            Self::Sent(at) => at.value.flow(),
            Self::Received(at) => Some(at.value.socket.flow),
            // A disconnected socket has lost its addresses: only its identity can match.
            Self::Error(at) => Some(at.value.socket.flow).filter(|flow| flow.dst.port() != 0),
            Self::Drop(at) => Some(at.value.packet.flow),
        }
    }

    fn socket(&self) -> Option<&Socket> {
        match self {
            Self::Sent(at) => at.value.socket.as_ref().filter(|socket| socket.is_connection()),
            Self::Received(at) => Some(&at.value.socket),
            Self::Error(at) => Some(&at.value.socket),
            Self::Drop(_) => None,
        }
    }

    fn anchor(&self) -> Option<Anchor> {
        match self {
            Self::Sent(at) => match &at.value.trigger {
                Some(trigger) => Some(Anchor::of_packet(trigger)),
                None => at.value.socket.as_ref().and_then(Anchor::of_socket),
            },
            Self::Received(at) => Anchor::of_socket(&at.value.socket),
            Self::Error(at) => Anchor::of_socket(&at.value.socket),
            Self::Drop(at) => Some(Anchor::of_packet(&at.value.packet)),
        }
    }

    /// The reset in this record.
    fn reset(&self) -> Option<Reset> {
        match self {
            Self::Sent(at) => {
                let seq = at.value.seq().filter(|seq| *seq != 0);
                let ack = at.value.trigger.filter(|_| seq.is_none()).map(|trigger| trigger.end());
                Some(Reset { sent: true, number: seq.or(ack)?, by_ack: seq.is_none(), ts: at.ts })
            }
            Self::Received(at) => {
                let seq = Some(at.value.seq()).filter(|seq| *seq != 0);
                // Without the packet: a connecting socket accepts only a reset that acknowledges
                // its SYN (net/ipv4/tcp_input.c).
                let syn = at.value.socket.state == tcp_state::SYN_SENT;
                let acked = syn.then_some(at.value.socket.snd_nxt);
                let ack = at.value.packet.map(|packet| packet.ack).or(acked);
                Some(Reset { sent: false, number: seq.or(ack)?, by_ack: seq.is_none(), ts: at.ts })
            }
            Self::Error(_) | Self::Drop(_) => None,
        }
    }
}

/// A reset as recorded at one end of the connection.
#[derive(Clone, Copy, Debug)]
struct Reset {
    sent: bool,
    /// The sequence number of the reset; where the RFC requires 0, its acknowledgement number.
    number: u32,
    by_ack: bool,
    ts: Nanos,
}

impl Reset {
    /// Whether one was sent, the other received, and both are the same segment.
    fn pairs_with(self, other: Self) -> bool {
        self.sent != other.sent
            && (self.number, self.by_ack) == (other.number, other.by_ack)
            && self.ts.abs_diff(other.ts) < SAME_RESET_NS
    }
}

/// Everything that identifies a connection, so that a later record of the connection can be recognised.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    flows: Vec<Flow>,
    anchors: Vec<Anchor>,
    /// Namespace and socket.
    sockets: Vec<(u32, u64)>,
    resets: Vec<Reset>,
}

impl Identity {
    fn add(&mut self, record: &Record) {
        if let Some(flow) = record.flow() {
            self.add_flow(flow);
        }
        if let Record::Drop(at) = record
            && let Some(nat) = at.value.nat()
        {
            self.add_flow(nat.original);
            self.add_flow(nat.reply);
        }
        if let Some(anchor) = record.anchor()
            && self.anchors.len() < MAX_RECORDS
        {
            self.anchors.push(anchor);
        }
        if let Some(socket) = record.socket()
            && !self.sockets.contains(&(record.netns(), socket.id))
        {
            self.sockets.push((record.netns(), socket.id));
        }
        if let Some(reset) = record.reset()
            && self.resets.len() < MAX_RECORDS
        {
            self.resets.push(reset);
        }
    }

    /// Adds another tuple of the same connection, as NAT or IPVS shows it.
    pub fn add_flow(&mut self, flow: Flow) {
        if !self.flows.contains(&flow.key()) {
            self.flows.push(flow.key());
        }
    }

    /// Every tuple seen, each as its [`Flow::key`].
    pub fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// The numbers of the recorded resets, by which a case can be found.
    pub fn reset_numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.resets.iter().map(|reset| reset.number)
    }

    /// The blocks of the sequence numbers of one direction, where the other direction is known too. By these
    /// blocks a connection can be found when NAT hides its tuple.
    pub fn blocks(&self) -> impl Iterator<Item = u32> + '_ {
        let both = self.anchors.iter().filter_map(|Anchor(one, other)| Some([(*one)?, (*other)?]));
        // The narrower one: a span of a damaged capture can be as wide as all numbers.
        let narrow = both.filter_map(|spans| spans.into_iter().min_by_key(Span::width));
        narrow.flat_map(|span| span.blocks(0))
    }

    /// Whether the socket of this record is already known. Only meaningful for a record that
    /// [`Self::matches`], because the kernel reuses the memory of a socket at once.
    pub fn knows_socket_of(&self, record: &Record) -> bool {
        record.socket().is_some_and(|socket| self.sockets.contains(&(record.netns(), socket.id)))
    }

    /// Whether `record` is about the same connection.
    pub fn matches(&self, record: &Record) -> bool {
        let same_tuple = record.flow().is_some_and(|flow| self.flows.contains(&flow.key()));
        let anchors_fit = record.anchor().is_none_or(|anchor| {
            let is_same = |known: &Anchor| known.is_same(anchor);
            let fits =
                |known: &Anchor| known.fits(anchor) || (same_tuple && known.fits_in_window(anchor));
            self.anchors.iter().all(fits)
                // A reset that answered a segment far outside the window: the socket that received
                // it is already known.
                || (self.knows_socket_of(record) && self.anchors.iter().any(is_same))
        });
        // A segment in flight may be larger than any distance allowed above, so for the two ends of
        // one reset a common address is enough.
        let touches = |flow: Flow| {
            let ends = [flow.src, flow.dst];
            self.flows.iter().any(|known| ends.contains(&known.src) || ends.contains(&known.dst))
        };
        if let Some(reset) = record.reset()
            && self.resets.iter().any(|known| known.pairs_with(reset))
            && (anchors_fit || record.flow().is_some_and(touches))
        {
            return true;
        }
        let same_numbers =
            record.anchor().is_some_and(|anchor| self.anchors.iter().any(|a| a.is_same(anchor)));
        anchors_fit && (same_tuple || (same_numbers && record.flow().is_some_and(touches)))
    }
}

/// The records of one broken connection.
#[derive(Clone, Debug)]
pub struct Case {
    pub opened: Nanos,
    /// Namespace of the first record.
    pub netns: u32,
    pub sent: Vec<Stamped<ResetSent>>,
    pub received: Vec<Stamped<ResetReceived>>,
    pub errors: Vec<Stamped<SocketError>>,
    pub drops: Vec<Stamped<PacketDrop>>,
    pub identity: Identity,
}

impl Case {
    pub fn open(record: Record) -> Self {
        let mut case = Self {
            opened: record.ts(),
            netns: record.netns(),
            sent: Vec::new(),
            received: Vec::new(),
            errors: Vec::new(),
            drops: Vec::new(),
            identity: Identity::default(),
        };
        case.add(record);
        case
    }

    pub fn add(&mut self, record: Record) {
        fn push<T>(list: &mut Vec<T>, item: T) {
            if list.len() < MAX_RECORDS {
                list.push(item);
            }
        }
        let only_dropped =
            self.sent.is_empty() && self.received.is_empty() && self.errors.is_empty();
        let failed = self.drops.iter().any(|at| at.value.is_failure());
        if only_dropped && !failed && !matches!(record, Record::Drop(_)) {
            // A drop by a rule does not open a case by itself; its consequence does.
            self.opened = record.ts();
        }
        self.identity.add(&record);
        if self.has(&record) {
            return;
        }
        match record {
            Record::Sent(at) => push(&mut self.sent, at),
            Record::Received(at) => push(&mut self.received, at),
            Record::Error(at) => push(&mut self.errors, at),
            Record::Drop(at) => push(&mut self.drops, at),
        }
    }

    /// Whether two BPF programs recorded the same event: a socket fails once, and a packet is answered once.
    fn has(&self, record: &Record) -> bool {
        let soon = |a: Nanos, b: Nanos| a.abs_diff(b) < DUPLICATE_NS;
        match record {
            Record::Sent(at) => self.sent.iter().any(|known| {
                let socket = |it: &ResetSent| it.socket.as_ref().map(|socket| socket.id);
                let same =
                    (known.netns, known.value.trigger, socket(&known.value), known.value.via)
                        == (at.netns, at.value.trigger, socket(&at.value), at.value.via);
                same && soon(known.ts, at.ts) && known.value.seq() == at.value.seq()
            }),
            Record::Error(at) => self.errors.iter().any(|known| {
                let (one, other) = (&known.value.socket, &at.value.socket);
                let same = (known.netns, one.id, one.flow, one.err)
                    == (at.netns, other.id, other.flow, other.err);
                same && soon(known.ts, at.ts)
            }),
            Record::Received(_) | Record::Drop(_) => false,
        }
    }

    /// Takes in another case that is about the same connection.
    pub fn merge(&mut self, other: Self) {
        self.opened = self.opened.min(other.opened);
        let records = other
            .sent
            .into_iter()
            .map(Record::Sent)
            .chain(other.received.into_iter().map(Record::Received))
            .chain(other.errors.into_iter().map(Record::Error))
            .chain(other.drops.into_iter().map(Record::Drop));
        for record in records {
            self.add(record);
        }
    }
}
