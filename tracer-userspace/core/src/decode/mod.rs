//! Decodes bytes from the ring buffer to [`Event`]s. Any input gives an event or an error with its offset,
//! never a panic.

use std::{
    mem::offset_of,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use rsttrace_model::{
    flow::{Flow, Nanos},
    owner::Opener,
    socket::Keepalive,
};
use tracer_common::{
    record,
    wire::{
        ABSENT, Header, KIND_CONNTRACK_CLASH, KIND_CONNTRACK_END, KIND_CONNTRACK_INVALID,
        KIND_IPVS_END, KIND_IPVS_NO_SERVER, KIND_IPVS_SERVER_REMOVED, KIND_NAT_CHAIN_REMOVED,
        KIND_NETFILTER_DROP, KIND_RESET_RECEIVED, KIND_RESET_SENT, KIND_RULE_REJECT,
        KIND_SOCKET_ERROR, WIRE_VERSION,
    },
};

use crate::event::{
    Body, ConntrackEnd, ConntrackInvalid, DropReason, Event, IpvsEnd, IpvsServerRemoved,
    NatChainRemoved, NatTuples, Packet, PacketDrop, PacketEntry, PlainEnd, ResetReceived,
    ResetSent, RuleDrop, Socket, SocketEnd, SocketError, Stack, Task, Via,
};

/// Why bytes are not a valid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the field at this offset needs.
    Truncated { at: usize },
    /// The record has another wire version.
    Version { found: u8 },
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated { at } => write!(f, "the record ends before the field at byte {at}"),
            Self::Version { found } => {
                write!(f, "the record has wire version {found}; this build reads {WIRE_VERSION}")
            }
        }
    }
}

impl std::error::Error for DecodeError {}

type Result<T> = std::result::Result<T, DecodeError>;

/// Facts about the running kernel that decoding needs.
pub trait Kernel {
    /// Jiffies per second.
    fn hz(&self) -> u64;
    /// Name of the function that contains this kernel address.
    fn symbol(&self, address: u64) -> Option<&str>;
    /// Name of an `enum sk_rst_reason` value, without its prefix.
    fn reset_reason(&self, value: u32) -> Option<&str>;
}

/// A slice of bytes with checked reads.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    all: &'a [u8],
    base: usize,
}

impl<'a> Bytes<'a> {
    fn get<const N: usize>(self, offset: usize) -> Result<[u8; N]> {
        let at = self.base + offset;
        self.all
            .get(at..at + N)
            .and_then(|slice| slice.try_into().ok())
            .ok_or(DecodeError::Truncated { at })
    }

    fn within(self, offset: usize) -> Self {
        Bytes { all: self.all, base: self.base + offset }
    }

    fn u8(self, offset: usize) -> Result<u8> {
        Ok(u8::from_ne_bytes(self.get(offset)?))
    }
    fn u16(self, offset: usize) -> Result<u16> {
        Ok(u16::from_ne_bytes(self.get(offset)?))
    }
    fn u32(self, offset: usize) -> Result<u32> {
        Ok(u32::from_ne_bytes(self.get(offset)?))
    }
    fn u64(self, offset: usize) -> Result<u64> {
        Ok(u64::from_ne_bytes(self.get(offset)?))
    }
}

/// Converts timestamps in jiffies that are near the time of the record.
struct Clock {
    ts: Nanos,
    jiffies: u64,
    hz: u64,
}

impl Clock {
    fn nanos(&self, jiffies: i64) -> i64 {
        let per_jiffy = 1_000_000_000 / i64::try_from(self.hz.max(1)).unwrap_or(i64::MAX);
        jiffies.saturating_mul(per_jiffy)
    }

    fn relative(&self, jiffies: i64) -> Nanos {
        self.ts.saturating_add_signed(self.nanos(jiffies))
    }

    /// A `tcp_jiffies32` timestamp; 0 means never.
    fn stamp32(&self, stamp: u32) -> Option<Nanos> {
        #[expect(clippy::cast_possible_truncation, reason = "jiffies32 is jiffies truncated")]
        let ahead = stamp.wrapping_sub(self.jiffies as u32).cast_signed();
        (stamp != 0).then(|| self.relative(i64::from(ahead)))
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds for display")]
    fn seconds(&self, jiffies: u64) -> f64 {
        jiffies as f64 / self.hz.max(1) as f64
    }
}

/// Decodes one record. `None` for the record of a packet that is not TCP, because the probes do not check the
/// protocol.
///
/// # Errors
/// [`DecodeError`] when the bytes are too short for their kind or have another wire version.
pub fn decode(bytes: &[u8], kernel: &dyn Kernel) -> Result<Option<Event>> {
    let header = Bytes { all: bytes, base: 0 };
    let version = header.u8(offset_of!(Header, version))?;
    if version != WIRE_VERSION {
        return Err(DecodeError::Version { found: version });
    }
    let kind = header.u16(offset_of!(Header, kind))?;
    let len = header.u32(offset_of!(Header, len))?;
    let clock = Clock {
        ts: header.u64(offset_of!(Header, ts_ns))?,
        jiffies: header.u64(offset_of!(Header, jiffies))?,
        hz: kernel.hz(),
    };
    let netns = header.u32(offset_of!(Header, netns))?;
    let payload = header.within(usize::from(header.u8(offset_of!(Header, header_len))?));
    let decoder = Decoder { clock, kernel };
    let dropped = |drop: PacketDrop| Body::PacketDrop(Box::new(drop));
    let body = match kind {
        KIND_RESET_SENT => Some(Body::ResetSent(Box::new(decoder.reset_sent(payload)?))),
        KIND_RESET_RECEIVED => {
            Some(Body::ResetReceived(Box::new(decoder.reset_received(payload)?)))
        }
        KIND_SOCKET_ERROR => Some(Body::SocketError(Box::new(decoder.socket_error(payload)?))),
        KIND_IPVS_END => Some(Body::IpvsEnd(Box::new(decoder.ipvs_end(payload)?))),
        KIND_CONNTRACK_END => Some(Body::ConntrackEnd(Box::new(decoder.conntrack_end(payload)?))),
        KIND_NETFILTER_DROP => decoder.netfilter_drop(payload)?.map(dropped),
        KIND_RULE_REJECT => decoder.rule_reject(payload)?.map(dropped),
        KIND_IPVS_NO_SERVER => decoder.ipvs_no_server(payload)?.map(dropped),
        KIND_IPVS_SERVER_REMOVED => {
            Some(Body::IpvsServerRemoved(Box::new(decoder.ipvs_server_removed(payload)?)))
        }
        KIND_NAT_CHAIN_REMOVED => {
            Some(Body::NatChainRemoved(Box::new(decoder.nat_chain_removed(payload)?)))
        }
        KIND_CONNTRACK_INVALID => {
            let invalid = decoder.tracked_packet(payload)?;
            invalid.map(|invalid| Body::ConntrackInvalid(Box::new(invalid)))
        }
        KIND_CONNTRACK_CLASH => {
            decoder.tracked_packet(payload)?.map(|clash| dropped(clashed(&clash)))
        }
        _ => Some(Body::Unknown { kind, len }),
    };
    Ok(body.map(|body| Event { ts: decoder.clock.ts, netns, body }))
}

/// Decodes an entry of the `SOCKET_ENDS` map, whose key is the flow of a socket with its local side first.
///
/// # Errors
/// [`DecodeError`] when the bytes are too short.
pub fn ended_socket(key: &[u8], end: &[u8], hz: u64) -> Result<Option<(Flow, SocketEnd)>> {
    let clock = Clock { ts: 0, jiffies: 0, hz };
    let end = socket_end(Bytes { all: end, base: 0 }, &clock)?;
    let flow = flow(Bytes { all: key, base: 0 })?;
    Ok(end.map(|end| (flow, end)))
}

/// The recorded end of a socket; `None` where none is stored.
fn socket_end(end: Bytes<'_>, clock: &Clock) -> Result<Option<SocketEnd>> {
    use record::SocketEnd as E;
    Ok(match end.u64(offset_of!(E, ts_ns))? {
        0 => None,
        ts => Some(SocketEnd {
            ts,
            task: task(end.within(offset_of!(E, task)))?,
            err: end.u32(offset_of!(E, err))?,
            old_state: end.u8(offset_of!(E, old_state))?,
            new_state: end.u8(offset_of!(E, new_state))?,
            idle_s: Some(clock.seconds(end.u32(offset_of!(E, idle_j))?.into())),
        }),
    })
}

/// Decodes a slot of the `PLAIN_ENDS` map whose flow is this one, in either direction. `None` for another flow and for
/// an empty slot.
///
/// # Errors
/// [`DecodeError`] when the bytes are too short or have another wire version.
pub fn plain_end(slot: &[u8], wanted: Flow, kernel: &dyn Kernel) -> Result<Option<PlainEnd>> {
    use record::PlainEnd as S;
    let bytes = Bytes { all: slot, base: 0 };
    let original = bytes.within(offset_of!(S, end) + offset_of!(record::ConntrackEnd, original));
    if bytes.u64(offset_of!(S, number))? == 0 || flow(original)?.key() != wanted.key() {
        return Ok(None);
    }
    let record = slot.get(offset_of!(S, header)..).unwrap_or_default();
    Ok(match decode(record, kernel)? {
        Some(Event { ts, netns, body: Body::ConntrackEnd(end) }) => {
            Some(PlainEnd { ts, netns, end: *end })
        }
        _ => None,
    })
}

/// Decodes the value of a flow in the `RULE_DROPS` map.
///
/// # Errors
/// [`DecodeError`] when the bytes are too short.
pub fn rule_drop(flow: Flow, value: &[u8]) -> Result<RuleDrop> {
    use record::RuleDrop as R;
    let bytes = Bytes { all: value, base: 0 };
    Ok(RuleDrop {
        flow,
        first: bytes.u64(offset_of!(R, first_ns))?,
        last: bytes.u64(offset_of!(R, last_ns))?,
        count: bytes.u32(offset_of!(R, count))?,
        netns: bytes.u32(offset_of!(R, netns))?,
        entry: packet_entry(bytes.u32(offset_of!(R, entry))?),
    })
}

fn packet_entry(value: u32) -> PacketEntry {
    match value {
        record::ENTRY_NONE => PacketEntry::None,
        record::ENTRY_NEW => PacketEntry::Made,
        record::ENTRY_EXISTED => PacketEntry::Existed,
        _ => PacketEntry::Unknown,
    }
}

fn address(bytes: [u8; 16], port: u16) -> SocketAddr {
    let v6 = Ipv6Addr::from(bytes);
    SocketAddr::new(v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4), port)
}

fn flow(bytes: Bytes<'_>) -> Result<Flow> {
    Ok(Flow {
        src: address(
            bytes.get(offset_of!(record::Flow, src_addr))?,
            bytes.u16(offset_of!(record::Flow, src_port))?,
        ),
        dst: address(
            bytes.get(offset_of!(record::Flow, dst_addr))?,
            bytes.u16(offset_of!(record::Flow, dst_port))?,
        ),
    })
}

fn task(bytes: Bytes<'_>) -> Result<Task> {
    const PF_EXITING: u32 = 4;
    Ok(Task {
        pid: bytes.u32(offset_of!(record::Task, tgid))?,
        comm: name(bytes.get(offset_of!(record::Task, comm))?),
        exiting: bytes.u32(offset_of!(record::Task, flags))? & PF_EXITING != 0,
        exit_code: bytes.u32(offset_of!(record::Task, exit_code))?,
    })
}

/// A task's name, up to its terminating zero.
fn name(comm: [u8; 16]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

fn opener(bytes: Bytes<'_>) -> Result<Option<Opener>> {
    use record::Opener as R;
    let pid = bytes.u32(offset_of!(R, tgid))?;
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some(Opener {
        pid,
        comm: name(bytes.get(offset_of!(R, comm))?),
        start_boottime_ns: bytes.u64(offset_of!(R, start_ns))?,
        cgroup: bytes.u64(offset_of!(R, cgroup))?,
    }))
}

fn packet(bytes: Bytes<'_>) -> Result<Option<Packet>> {
    if bytes.u8(offset_of!(record::Packet, present))? == 0 {
        return Ok(None);
    }
    Ok(Some(Packet {
        flow: flow(bytes.within(offset_of!(record::Packet, flow)))?,
        seq: bytes.u32(offset_of!(record::Packet, seq))?,
        ack: bytes.u32(offset_of!(record::Packet, ack))?,
        payload: bytes.u32(offset_of!(record::Packet, payload))?,
        flags: bytes.u8(offset_of!(record::Packet, flags))?,
        ttl: bytes.u8(offset_of!(record::Packet, ttl))?,
    }))
}

/// The dropped packet with the addresses that its sender used: NAT had already changed them.
fn clashed(tracked: &ConntrackInvalid) -> PacketDrop {
    PacketDrop {
        packet: Packet { flow: tracked.original, ..tracked.packet },
        why: DropReason::Clash { tuple: tracked.reply.reversed() },
    }
}

struct Decoder<'a> {
    clock: Clock,
    kernel: &'a dyn Kernel,
}

impl Decoder<'_> {
    fn stack(&self, bytes: Bytes<'_>) -> Result<Stack> {
        let mut names = Stack::new();
        for frame in 0..record::STACK_DEPTH {
            let address = bytes.u64(frame * size_of::<u64>())?;
            if address == 0 {
                break;
            }
            if let Some(name) = self.kernel.symbol(address) {
                names.push(name.into());
            }
        }
        Ok(names)
    }

    /// The socket of a record, with the process that connected it.
    fn socket(&self, bytes: Bytes<'_>, opened_by: Bytes<'_>) -> Result<Option<Socket>> {
        use record::Sock;
        // enum sock_flags (include/net/sock.h)
        const SOCK_DEAD: u64 = 1;
        const SOCK_KEEPOPEN: u64 = 1 << 3;
        const SOCK_LINGER: u64 = 1 << 4;
        // include/net/sock.h
        const RCV_SHUTDOWN: u8 = 1;

        let id = bytes.u64(offset_of!(Sock, id))?;
        if id == 0 {
            return Ok(None);
        }
        let flags = bytes.u64(offset_of!(Sock, flags))?;
        let stamp = |offset| Ok(self.clock.stamp32(bytes.u32(offset)?));
        let last_ack: Option<Nanos> = stamp(offset_of!(Sock, rcv_tstamp_j))?;
        let last_data: Option<Nanos> = stamp(offset_of!(Sock, lrcvtime_j))?;
        let rcv_nxt = bytes.u32(offset_of!(Sock, rcv_nxt))?;
        // The peer's FIN takes a sequence number and counts as a byte.
        let fin = u32::from(bytes.u8(offset_of!(Sock, shutdown))? & RCV_SHUTDOWN != 0);
        let not_read = rcv_nxt.wrapping_sub(bytes.u32(offset_of!(Sock, copied_seq))?);
        Ok(Some(Socket {
            id,
            inode: bytes.u64(offset_of!(Sock, inode))?,
            flow: flow(bytes.within(offset_of!(Sock, flow)))?,
            state: bytes.u8(offset_of!(Sock, state))?,
            tw_substate: bytes.u8(offset_of!(Sock, tw_substate))?,
            dead: flags & SOCK_DEAD != 0,
            linger_zero: flags & SOCK_LINGER != 0
                && bytes.u64(offset_of!(Sock, lingertime_j))? == 0,
            linger2_negative: bytes.u32(offset_of!(Sock, linger2))?.cast_signed() < 0,
            err: bytes.u32(offset_of!(Sock, err))?,
            err_soft: bytes.u32(offset_of!(Sock, err_soft))?,
            bytes_received: bytes.u64(offset_of!(Sock, bytes_received))?.saturating_sub(fin.into()),
            bytes_sent: bytes.u64(offset_of!(Sock, bytes_sent))?,
            unread: not_read.saturating_sub(fin),
            read_end: fin != 0 && not_read == 0,
            last_received: last_ack.max(last_data),
            last_sent: stamp(offset_of!(Sock, lsndtime_j))?,
            keepalive: self.keepalive(bytes, flags & SOCK_KEEPOPEN != 0)?,
            user_timeout_ms: bytes.u32(offset_of!(Sock, user_timeout_ms))?,
            packets_out: bytes.u32(offset_of!(Sock, packets_out))?,
            snd_una: bytes.u32(offset_of!(Sock, snd_una))?,
            snd_nxt: bytes.u32(offset_of!(Sock, snd_nxt))?,
            snd_wnd: bytes.u32(offset_of!(Sock, snd_wnd))?,
            rcv_nxt,
            retransmits: bytes.u8(offset_of!(Sock, retransmits))?,
            probes_out: bytes.u8(offset_of!(Sock, probes_out))?,
            retries2: bytes.u8(offset_of!(Sock, sysctl_retries2))?,
            ack_backlog: bytes.u32(offset_of!(Sock, ack_backlog))?,
            max_ack_backlog: bytes.u32(offset_of!(Sock, max_ack_backlog))?,
            opener: opener(opened_by)?,
            cookies_sent: stamp(offset_of!(Sock, synq_overflow_j))?,
        }))
    }

    fn keepalive(&self, bytes: Bytes<'_>, enabled: bool) -> Result<Keepalive> {
        use record::Sock;
        // 0 on the socket means the value of the namespace (include/net/tcp.h, keepalive_time_when).
        let or = |own: u32, sysctl: u32| u64::from(if own == 0 { sysctl } else { own });
        let own_time = bytes.u32(offset_of!(Sock, keepalive_time_j))?;
        let own_probes = bytes.u8(offset_of!(Sock, keepalive_probes))?;
        Ok(Keepalive {
            enabled,
            time_s: self
                .clock
                .seconds(or(own_time, bytes.u32(offset_of!(Sock, sysctl_keepalive_time_j))?)),
            intvl_s: self.clock.seconds(or(
                bytes.u32(offset_of!(Sock, keepalive_intvl_j))?,
                bytes.u32(offset_of!(Sock, sysctl_keepalive_intvl_j))?,
            )),
            probes: match own_probes {
                0 => bytes.u8(offset_of!(Sock, sysctl_keepalive_probes))?,
                own => own,
            },
            time_is_own: own_time != 0,
        })
    }

    fn reset_sent(&self, bytes: Bytes<'_>) -> Result<ResetSent> {
        use record::ResetSent as R;
        let reason = bytes.u32(offset_of!(R, reason))?;
        Ok(ResetSent {
            socket: self
                .socket(bytes.within(offset_of!(R, sock)), bytes.within(offset_of!(R, opener)))?,
            trigger: packet(bytes.within(offset_of!(R, trigger)))?,
            end: socket_end(bytes.within(offset_of!(R, end)), &self.clock)?,
            task: task(bytes.within(offset_of!(R, task)))?,
            stack: self.stack(bytes.within(offset_of!(R, stack)))?,
            reason: (reason != ABSENT)
                .then(|| self.kernel.reset_reason(reason).map(Into::into))
                .flatten(),
            via: match bytes.u32(offset_of!(R, via))? {
                record::VIA_NETFILTER => Via::Netfilter,
                record::VIA_FUNCTION => Via::Function,
                _ => Via::Tracepoint,
            },
            entry: packet_entry(bytes.u32(offset_of!(R, entry))?),
        })
    }

    fn reset_received(&self, bytes: Bytes<'_>) -> Result<ResetReceived> {
        use record::ResetReceived as R;
        let at = offset_of!(R, sock);
        Ok(ResetReceived {
            socket: self
                .socket(bytes.within(at), bytes.within(offset_of!(R, opener)))?
                .ok_or(DecodeError::Truncated { at: bytes.base + at })?,
            packet: packet(bytes.within(offset_of!(R, packet)))?,
        })
    }

    fn socket_error(&self, bytes: Bytes<'_>) -> Result<SocketError> {
        use record::SocketError as R;
        let at = offset_of!(R, sock);
        Ok(SocketError {
            socket: self
                .socket(bytes.within(at), bytes.within(offset_of!(R, opener)))?
                .ok_or(DecodeError::Truncated { at: bytes.base + at })?,
            task: task(bytes.within(offset_of!(R, task)))?,
            stack: self.stack(bytes.within(offset_of!(R, stack)))?,
        })
    }

    fn ipvs_end(&self, bytes: Bytes<'_>) -> Result<IpvsEnd> {
        use record::IpvsEnd as R;
        let timeout = bytes.u64(offset_of!(R, timeout_j))?;
        let armed = bytes.u64(offset_of!(R, expires_j))?.wrapping_sub(timeout);
        let forced = bytes.u32(offset_of!(R, forced))? != 0;
        let since_armed = armed.wrapping_sub(self.clock.jiffies).cast_signed();
        Ok(IpvsEnd {
            virtual_flow: flow(bytes.within(offset_of!(R, virtual_flow)))?,
            real_flow: flow(bytes.within(offset_of!(R, real_flow)))?,
            state: bytes.u32(offset_of!(R, state))?,
            flags: bytes.u32(offset_of!(R, flags))?,
            timeout_s: self.clock.seconds(timeout),
            // A forced expiry changes the timer.
            last_packet: (since_armed <= 0 && !forced).then(|| self.clock.relative(since_armed)),
            forced,
            server_gone: bytes.u32(offset_of!(R, server_gone))? != 0,
            packets: Some(bytes.u32(offset_of!(R, packets))?).filter(|packets| *packets != ABSENT),
            task: task(bytes.within(offset_of!(R, task)))?,
            stack: self.stack(bytes.within(offset_of!(R, stack)))?,
        })
    }

    fn conntrack_end(&self, bytes: Bytes<'_>) -> Result<ConntrackEnd> {
        use record::ConntrackEnd as R;
        let deadline = bytes.u32(offset_of!(R, timeout_j))?;
        Ok(ConntrackEnd {
            original: flow(bytes.within(offset_of!(R, original)))?,
            reply: flow(bytes.within(offset_of!(R, reply)))?,
            status: bytes.u64(offset_of!(R, status))?,
            state: bytes.u32(offset_of!(R, state))?,
            deadline: self.clock.stamp32(deadline).unwrap_or(self.clock.ts),
            portid: bytes.u32(offset_of!(R, portid))?,
            zone: bytes.u32(offset_of!(R, zone))?,
            task: task(bytes.within(offset_of!(R, task)))?,
            stack: self.stack(bytes.within(offset_of!(R, stack)))?,
        })
    }

    fn netfilter_drop(&self, bytes: Bytes<'_>) -> Result<Option<PacketDrop>> {
        use record::NetfilterDrop as R;
        let why = match bytes.u32(offset_of!(R, via))? {
            record::VIA_EARLY_DROP => DropReason::TableFull,
            record::VIA_NO_DESTINATION => DropReason::NoDestination,
            _ => DropReason::Netfilter { tracked: bytes.u32(offset_of!(R, tracked))? != 0 },
        };
        let packet = packet(bytes.within(offset_of!(R, packet)))?;
        Ok(packet.map(|packet| PacketDrop { packet, why }))
    }

    fn rule_reject(&self, bytes: Bytes<'_>) -> Result<Option<PacketDrop>> {
        use record::RuleReject as R;
        let stack = self.stack(bytes.within(offset_of!(R, stack)))?;
        let entry = packet_entry(bytes.u32(offset_of!(R, entry))?);
        let tuples = NatTuples {
            original: flow(bytes.within(offset_of!(R, original)))?,
            reply: flow(bytes.within(offset_of!(R, reply)))?,
        };
        Ok(packet(bytes.within(offset_of!(R, packet)))?.map(|met| {
            let as_sent = tuples.as_sent(met.flow);
            PacketDrop {
                packet: Packet { flow: as_sent.unwrap_or(met.flow), ..met },
                why: DropReason::Rejected { stack, nat: as_sent.map(|_| tuples), entry },
            }
        }))
    }

    fn tracked_packet(&self, bytes: Bytes<'_>) -> Result<Option<ConntrackInvalid>> {
        use record::TrackedPacket as R;
        let (original, reply) = (
            flow(bytes.within(offset_of!(R, original)))?,
            flow(bytes.within(offset_of!(R, reply)))?,
        );
        let state = bytes.u32(offset_of!(R, state))?;
        Ok(packet(bytes.within(offset_of!(R, packet)))?.map(|packet| ConntrackInvalid {
            packet,
            original,
            reply,
            state,
        }))
    }

    fn ipvs_no_server(&self, bytes: Bytes<'_>) -> Result<Option<PacketDrop>> {
        let packet = packet(bytes.within(offset_of!(record::IpvsNoServer, packet)))?;
        Ok(packet.map(|packet| PacketDrop { packet, why: DropReason::NoServer }))
    }

    fn nat_chain_removed(&self, bytes: Bytes<'_>) -> Result<NatChainRemoved> {
        use record::NatChainRemoved as R;
        Ok(NatChainRemoved {
            family: bytes.u32(offset_of!(R, family))?,
            task: task(bytes.within(offset_of!(R, task)))?,
            stack: self.stack(bytes.within(offset_of!(R, stack)))?,
        })
    }

    fn ipvs_server_removed(&self, bytes: Bytes<'_>) -> Result<IpvsServerRemoved> {
        use record::IpvsServerRemoved as R;
        let forward = flow(bytes.within(offset_of!(R, forward)))?;
        Ok(IpvsServerRemoved {
            service: forward.src,
            server: forward.dst,
            flags: bytes.u32(offset_of!(R, flags))?,
            task: task(bytes.within(offset_of!(R, task)))?,
            stack: self.stack(bytes.within(offset_of!(R, stack)))?,
        })
    }
}

#[cfg(test)]
mod tests;
