//! Reads a conntrack entry (`struct nf_conn`): only this module reads its tuples.

use tracer_common::{
    net::{AF_INET6, IPPROTO_TCP},
    record::{ENTRY_EXISTED, ENTRY_NEW, ENTRY_NONE, ENTRY_UNREADABLE, Flow, TrackedPacket},
    wire::ABSENT,
};

use crate::{
    emit::emit,
    kread::{copy, facts, read, read_or_zero},
    packet,
};

facts! {
    OFFSET_OF_nf_conn_DOT_tuplehash_DOT_0_DOT_tuple,
    OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple,
    OFFSET_OF_nf_conn_DOT_status,
    OFFSET_OF_nf_conn_DOT_zone_DOT_id,
    OFFSET_OF_nf_conn_DOT_ct_net_DOT_net,
    OFFSET_OF_nf_conn_DOT_proto_DOT_tcp_DOT_state,
    OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_u3,
    OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_u,
    OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_l3num,
    OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_u3,
    OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_u,
    OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_protonum,
    OFFSET_OF_sk_buff_DOT__nfct,
}

/// include/uapi/linux/netfilter/nf_conntrack_common.h: IPS_SRC_NAT | IPS_DST_NAT
const IPS_NAT: u64 = 1 << 4 | 1 << 5;
/// The same file.
pub const IPS_CONFIRMED: u64 = 1 << 3;

/// Address of the entry attached to a packet, 0 without one. The low three bits of `_nfct` are the ctinfo,
/// which an untracked packet may have too.
#[inline(always)]
pub fn of_packet(skb: u64) -> u64 {
    read_or_zero::<u64>(skb, OFFSET_OF_sk_buff_DOT__nfct.load()) & !7
}

/// `ENTRY_*` of a packet with this entry. The entry that a packet makes is confirmed only after the rules have let the
/// packet pass.
#[inline(always)]
pub fn entry_state(entry: u64) -> u32 {
    match entry {
        0 => ENTRY_NONE,
        entry => match status(entry) {
            Some(status) if status & IPS_CONFIRMED != 0 => ENTRY_EXISTED,
            Some(_) => ENTRY_NEW,
            None => ENTRY_UNREADABLE,
        },
    }
}

/// Whether entries with this status change addresses or ports.
#[inline(always)]
pub fn is_nat(status: u64) -> bool {
    status & IPS_NAT != 0
}

/// Whether this is a TCP entry.
#[inline(always)]
pub fn is_tcp(ct: u64) -> bool {
    let offset = OFFSET_OF_nf_conn_DOT_tuplehash_DOT_0_DOT_tuple.load();
    offset != ABSENT
        && read::<u8>(
            ct + u64::from(offset),
            OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_protonum.load(),
        ) == Some(IPPROTO_TCP)
}

/// Whether this is a TCP entry that changes addresses or ports.
#[inline(always)]
pub fn translates(ct: u64) -> bool {
    ct != 0 && is_tcp(ct) && status(ct).is_some_and(is_nat)
}

/// `TCP_CONNTRACK_*`.
#[inline(always)]
pub fn state(ct: u64) -> Option<u8> {
    read(ct, OFFSET_OF_nf_conn_DOT_proto_DOT_tcp_DOT_state.load())
}

/// `IPS_*` bits.
#[inline(always)]
pub fn status(ct: u64) -> Option<u64> {
    read(ct, OFFSET_OF_nf_conn_DOT_status.load())
}

/// Conntrack zone.
#[inline(always)]
pub fn zone(ct: u64) -> u32 {
    u32::from(read_or_zero::<u16>(ct, OFFSET_OF_nf_conn_DOT_zone_DOT_id.load()))
}

/// The namespace whose table holds the entry.
#[inline(always)]
pub fn netns(ct: u64) -> u32 {
    packet::netns_of_net(read_or_zero(ct, OFFSET_OF_nf_conn_DOT_ct_net_DOT_net.load()))
}

/// Fills in both tuples. A tuple whose offset is unknown stays zero.
///
/// # Safety
/// `original` and `reply` must be writable.
#[inline(always)]
pub unsafe fn fill_tuples(original: *mut Flow, reply: *mut Flow, ct: u64) {
    let tuples = [
        (original, OFFSET_OF_nf_conn_DOT_tuplehash_DOT_0_DOT_tuple.load()),
        (reply, OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple.load()),
    ];
    for (flow, offset) in tuples {
        if offset != ABSENT {
            // SAFETY: per the contract.
            unsafe { tuple(flow, ct + u64::from(offset)) };
        }
    }
}

#[inline(always)]
unsafe fn tuple(flow: *mut Flow, tuple: u64) {
    let v6 = read::<u16>(tuple, OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_l3num.load())
        == Some(u16::from(AF_INET6));
    // SAFETY: `flow` is writable, per the caller.
    unsafe {
        if v6 {
            copy!(flow.src_addr, tuple, OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_u3);
            copy!(flow.dst_addr, tuple, OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_u3);
        } else {
            (*flow).src_addr = packet::mapped(read_or_zero(
                tuple,
                OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_u3.load(),
            ));
            (*flow).dst_addr = packet::mapped(read_or_zero(
                tuple,
                OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_u3.load(),
            ));
        }
        (*flow).src_port =
            u16::from_be(read_or_zero(tuple, OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_u.load()));
        (*flow).dst_port =
            u16::from_be(read_or_zero(tuple, OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_u.load()));
    }
}

/// Emits a [`TrackedPacket`] when the packet is TCP and its connection is translated: without NAT
/// neither an INVALID verdict nor a clash of tuples breaks anything.
#[inline(always)]
pub fn report(kind: u16, skb: u64, ct: u64) -> Option<()> {
    if !translates(ct) {
        return None;
    }
    let status = status(ct)?;
    emit::<TrackedPacket>(kind, netns(ct), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            packet::fill(&raw mut (*out).packet, skb);
            fill_tuples(&raw mut (*out).original, &raw mut (*out).reply, ct);
            (*out).status = status;
            (*out).state = u32::from(state(ct).unwrap_or_default());
            (*out).zone = zone(ct);
        }
    });
    Some(())
}
