//! `tcp_v4_send_reset` and `tcp_v6_send_reset`: the resets that the `tcp_send_reset` tracepoint does not
//! report before 6.10 (no socket, TIME_WAIT, request sockets). Every case of lost state is among these, so
//! without kprobes such cases are not traced on these kernels.
//!
//! proto 5.10, 6.1: void(const struct sock *sk, struct sk_buff *skb)
//! proto 6.12 on:   void(const struct sock *sk, struct sk_buff *skb, enum sk_rst_reason reason)

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{record::VIA_FUNCTION, wire::ABSENT};

use crate::{
    kread::{facts, read, read_or_zero},
    packet, reset, sock,
};

facts! {
    OFFSET_OF_sk_buff_DOT_data,
    OFFSET_OF_rtable_DOT_rt_type,
}

/// include/uapi/linux/rtnetlink.h
const RTN_LOCAL: u16 = 2;
const TCP_FLAG_RST: u8 = 4;

#[kprobe(function = "tcp_v4_send_reset")]
pub fn tcp_v4_send_reset__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx, true);
    0
}

#[kprobe(function = "tcp_v6_send_reset")]
pub fn tcp_v6_send_reset__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx, false);
    0
}

/// Reports a reset that the tracepoint omits. The kernel function returns without sending in two cases: the
/// packet is a reset, or it has no socket and is not addressed to this host.
#[inline(always)]
fn report(ctx: &ProbeContext, v4: bool) -> Option<()> {
    let sk: u64 = ctx.arg(0)?;
    let skb: u64 = ctx.arg(1)?;
    if sock::is_full(sock::state(sk)) {
        return None;
    }
    // `skb->data` is at the TCP header here (tcp_v4_rcv pulled the rest).
    let tcp: u64 = read(skb, OFFSET_OF_sk_buff_DOT_data.load())?;
    if read::<u8>(tcp, 13)? & TCP_FLAG_RST != 0 {
        return None;
    }
    if v4 && sk == 0 {
        let route = packet::route(skb);
        let kind: u16 = read_or_zero(route, OFFSET_OF_rtable_DOT_rt_type.load());
        if route != 0 && OFFSET_OF_rtable_DOT_rt_type.load() != ABSENT && kind != RTN_LOCAL {
            return None;
        }
    }
    reset::sent(ctx, sk, skb, 0, ABSENT, VIA_FUNCTION);
    Some(())
}
