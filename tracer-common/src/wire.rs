//! The record header and the numbers in it.

/// Raised when the meaning of an existing byte changes. Fields are only ever appended to a
/// payload, so a reader accepts `len` bytes or more and ignores the unknown rest.
pub const WIRE_VERSION: u8 = 1;

/// Precedes every payload in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// [`WIRE_VERSION`] of the writer.
    pub version: u8,
    /// Bytes in this header: the payload starts there.
    pub header_len: u8,
    /// One of the `KIND_*` constants.
    pub kind: u16,
    /// Bytes in the payload.
    pub len: u32,
    /// `bpf_ktime_get_ns()`: CLOCK_MONOTONIC, nanoseconds.
    pub ts_ns: u64,
    /// `bpf_jiffies64()` at the same moment, to convert the kernel's jiffies stamps.
    pub jiffies: u64,
    /// `net.ns.inum` of the namespace in which it happened; 0 when it could not be read.
    pub netns: u32,
    /// CPU that wrote the record.
    pub cpu: u32,
}

/// A reset is about to leave this host ([`crate::record::ResetSent`]).
pub const KIND_RESET_SENT: u16 = 1;
/// A socket of this host accepts a reset ([`crate::record::ResetReceived`]).
pub const KIND_RESET_RECEIVED: u16 = 2;
/// A socket is closed with an error ([`crate::record::SocketError`]).
pub const KIND_SOCKET_ERROR: u16 = 3;
/// An IPVS entry ends ([`crate::record::IpvsEnd`]).
pub const KIND_IPVS_END: u16 = 4;
/// A conntrack entry ends ([`crate::record::ConntrackEnd`]).
pub const KIND_CONNTRACK_END: u16 = 5;
/// netfilter drops a TCP packet ([`crate::record::NetfilterDrop`]).
pub const KIND_NETFILTER_DROP: u16 = 6;
/// conntrack marks a packet of a connection with NAT as INVALID ([`crate::record::TrackedPacket`]).
pub const KIND_CONNTRACK_INVALID: u16 = 7;
/// IPVS has no server for a SYN and drops it ([`crate::record::IpvsNoServer`]).
pub const KIND_IPVS_NO_SERVER: u16 = 8;
/// A real server is removed from an IPVS service ([`crate::record::IpvsServerRemoved`]).
pub const KIND_IPVS_SERVER_REMOVED: u16 = 9;
/// A new connection's translated tuple clashes with another entry's, and its packet is dropped
/// ([`crate::record::TrackedPacket`]).
pub const KIND_CONNTRACK_CLASH: u16 = 10;
/// A firewall rule rejects a TCP packet with an ICMP error ([`crate::record::RuleReject`]).
pub const KIND_RULE_REJECT: u16 = 12;
/// A NAT chain is removed ([`crate::record::NatChainRemoved`]).
pub const KIND_NAT_CHAIN_REMOVED: u16 = 13;
/// Highest kind that this version writes.
pub const KIND_LAST: u16 = KIND_NAT_CHAIN_REMOVED;

/// Slots of a CPU's row in the `COUNTERS` map: `LOST + kind` counts records of that kind lost to a full ring
/// (`LOST` itself counts failed map insertions), `UNREADABLE` counts kernel reads that failed.
pub const COUNTER_LOST: u32 = 0;
/// See [`COUNTER_LOST`].
pub const COUNTER_UNREADABLE: u32 = 16;
/// Slots in a row. The map has one row for each possible CPU.
pub const COUNTERS: u32 = 17;

/// Means "this kernel does not have it", in any `u32` fact or field.
pub const ABSENT: u32 = u32::MAX;

const _: () = assert!(size_of::<Header>() == 32 && align_of::<Header>() == 8);
