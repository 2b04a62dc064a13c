//! `tcp_reset`: a socket of this host accepts a reset. The only place where the header of the reset can be
//! read. Its ACK bit distinguishes an abort by the peer's socket from an answer by a host without state.
//!
//! proto 5.10:   void(struct sock *sk)
//! proto 6.1 on: void(struct sock *sk, struct sk_buff *skb)

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::wire::ABSENT;

use crate::{kread::facts, reset};

facts! { ARG_OF_tcp_reset_DOT_sk_buff }

#[kprobe(function = "tcp_reset")]
pub fn tcp_reset__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg(0) {
        let skb = if ARG_OF_tcp_reset_DOT_sk_buff.load() == ABSENT { None } else { ctx.arg(1) };
        reset::received(sk, skb.unwrap_or(0));
    }
    0
}
