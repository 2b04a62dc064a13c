//! `nf_ct_delete`: a conntrack entry ends. The second argument is the netlink port of the user-space
//! deleter, 0 for the kernel; the stack names the kernel's own reason.
//!
//! proto 5.10 on: bool(struct nf_conn *ct, u32 portid, int report)
//!
//! gcc splits the function on 5.10 and 7.2: internal callers then reach only `nf_ct_delete.part.0`,
//! external ones reach both, with the same registers. Hence that name is tried first.
//! A reset that passes kills the entry of the packet it answers; such entries are in CLOSE, and like
//! TIME_WAIT and LAST_ACK return here. SYN_SENT never carried a connection.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{
    record::{ConntrackEnd, Flow},
    wire::{ABSENT, KIND_CONNTRACK_END},
};

use crate::{
    emit::emit,
    kread::{copy, facts, read, read_or_zero},
    packet, task,
};

facts! {
    OFFSET_OF_nf_conn_DOT_tuplehash_DOT_0_DOT_tuple,
    OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple,
    OFFSET_OF_nf_conn_DOT_status,
    OFFSET_OF_nf_conn_DOT_timeout,
    OFFSET_OF_nf_conn_DOT_zone_DOT_id,
    OFFSET_OF_nf_conn_DOT_ct_net_DOT_net,
    OFFSET_OF_nf_conn_DOT_proto_DOT_tcp_DOT_state,
    OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_u3,
    OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_u,
    OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_l3num,
    OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_u3,
    OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_u,
    OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_protonum,
}

const AF_INET6: u16 = 10;
const IPPROTO_TCP: u8 = 6;
/// include/uapi/linux/netfilter/nf_conntrack_common.h
const IPS_CONFIRMED: u64 = 1 << 3;
const IPS_DYING: u64 = 1 << 9;
/// include/uapi/linux/netfilter/nf_conntrack_tcp.h
const SYN_SENT: u8 = 1;
const LAST_ACK: u8 = 6;

#[kprobe(function = "nf_ct_delete.part.0")]
pub fn nf_ct_delete__kprobe_part0(ctx: ProbeContext) -> u32 {
    report(&ctx, 0);
    0
}

/// The whole function marks the entry itself: one already dying is being deleted by somebody else.
#[kprobe(function = "nf_ct_delete")]
pub fn nf_ct_delete__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx, IPS_DYING);
    0
}

#[inline(always)]
unsafe fn tuple(flow: *mut Flow, tuple: u64) {
    let v6 =
        read::<u16>(tuple, OFFSET_OF_nf_conntrack_tuple_DOT_src_DOT_l3num.load()) == Some(AF_INET6);
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

#[inline(always)]
fn report(ctx: &ProbeContext, refused_status: u64) -> Option<()> {
    let ct: u64 = ctx.arg(0)?;
    let portid: u32 = ctx.arg(1)?;
    let offset = OFFSET_OF_nf_conn_DOT_tuplehash_DOT_0_DOT_tuple.load();
    if offset == ABSENT {
        return None;
    }
    let original = ct + u64::from(offset);
    if read::<u8>(original, OFFSET_OF_nf_conntrack_tuple_DOT_dst_DOT_protonum.load())?
        != IPPROTO_TCP
    {
        return None;
    }
    let state: u8 = read(ct, OFFSET_OF_nf_conn_DOT_proto_DOT_tcp_DOT_state.load())?;
    // NONE 0, SYN_SENT 1, and LAST_ACK 6, TIME_WAIT 7, CLOSE 8.
    if state <= SYN_SENT || (state >= LAST_ACK && state <= 8) {
        return None;
    }
    let status: u64 = read(ct, OFFSET_OF_nf_conn_DOT_status.load())?;
    if status & IPS_CONFIRMED == 0 || status & refused_status != 0 {
        return None;
    }
    let net: u64 = read_or_zero(ct, OFFSET_OF_nf_conn_DOT_ct_net_DOT_net.load());
    let reply = OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple.load();
    emit::<ConntrackEnd>(KIND_CONNTRACK_END, packet::netns_of_net(net), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            tuple(&raw mut (*out).original, original);
            if reply != ABSENT {
                tuple(&raw mut (*out).reply, ct + u64::from(reply));
            }
            (*out).status = status;
            (*out).portid = portid;
            (*out).state = u32::from(state);
            copy!(out.timeout_j, ct, OFFSET_OF_nf_conn_DOT_timeout);
            (*out).zone =
                u32::from(read_or_zero::<u16>(ct, OFFSET_OF_nf_conn_DOT_zone_DOT_id.load()));
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
        }
    });
    Some(())
}
