//! `nf_ct_delete`: a conntrack entry ends. The second argument is the netlink port of the user-space
//! process that deletes it, 0 for the kernel; the stack shows the kernel's own reason.
//!
//! proto 5.10 on: bool(struct nf_conn *ct, u32 portid, int report)
//!
//! gcc splits the function on 5.10 and 7.2: internal callers then reach only `nf_ct_delete.part.0`,
//! external ones reach both, with the same registers. Hence that name is tried first. A reset that passes
//! ends the entry of the packet it answers. Such entries are in CLOSE and are not reported, like those in
//! TIME_WAIT and LAST_ACK. An entry in SYN_SENT never carried a connection. An entry that translates nothing
//! matters only where a rule depends on it, so its end stays in the kernel (`plain_end.rs`) until it is asked for.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{record::ConntrackEnd, wire::KIND_CONNTRACK_END};

use crate::{
    conntrack,
    emit::emit,
    kread::{copy, facts},
    plain_end, task,
};

facts! { OFFSET_OF_nf_conn_DOT_timeout }

/// include/uapi/linux/netfilter/nf_conntrack_common.h
const IPS_DYING: u64 = 1 << 9;
/// include/uapi/linux/netfilter/nf_conntrack_tcp.h
const SYN_SENT: u8 = 1;
/// See [`SYN_SENT`].
const SYN_RECV: u8 = 2;
const LAST_ACK: u8 = 6;

#[kprobe(function = "nf_ct_delete.part.0")]
pub fn nf_ct_delete__kprobe_part0(ctx: ProbeContext) -> u32 {
    report(&ctx, 0);
    0
}

/// The whole function sets IPS_DYING itself: if the bit is already set, another caller is deleting the entry.
#[kprobe(function = "nf_ct_delete")]
pub fn nf_ct_delete__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx, IPS_DYING);
    0
}

#[inline(always)]
fn report(ctx: &ProbeContext, refused_status: u64) -> Option<()> {
    let ct: u64 = ctx.arg(0)?;
    let portid: u32 = ctx.arg(1)?;
    if !conntrack::is_tcp(ct) {
        return None;
    }
    let state = conntrack::state(ct)?;
    // NONE 0, SYN_SENT 1, and LAST_ACK 6, TIME_WAIT 7, CLOSE 8.
    if state <= SYN_SENT || (state >= LAST_ACK && state <= 8) {
        return None;
    }
    let status = conntrack::status(ct)?;
    if status & conntrack::IPS_CONFIRMED == 0 || status & refused_status != 0 {
        return None;
    }
    let fill = |out: *mut ConntrackEnd| {
        // SAFETY: both stores pass a writable payload.
        unsafe {
            conntrack::fill_tuples(&raw mut (*out).original, &raw mut (*out).reply, ct);
            (*out).status = status;
            (*out).portid = portid;
            (*out).state = u32::from(state);
            copy!(out.timeout_j, ct, OFFSET_OF_nf_conn_DOT_timeout);
            (*out).zone = conntrack::zone(ct);
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
        }
    };
    let netns = conntrack::netns(ct);
    if conntrack::is_nat(status) {
        emit::<ConntrackEnd>(KIND_CONNTRACK_END, netns, fill);
    } else if state != SYN_RECV {
        plain_end::keep(netns, fill);
    }
    Some(())
}
