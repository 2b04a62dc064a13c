//! `tcp:tcp_receive_reset`: a socket of this host accepts a reset. Traced at the top of `tcp_reset`,
//! so the socket still has the state it had. Has no packet: the reset's ACK bit and TTL are
//! invisible here, which is why `tcp_reset.rs` is preferred.
//!
//! TP_PROTO 5.10 on: (struct sock *sk)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::{record::ResetReceived, wire::KIND_RESET_RECEIVED};

use crate::{emit::emit, opener, packet, sock};

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn tcp_receive_reset__rawtp(ctx: RawTracePointContext) -> i32 {
    report(ctx.arg(0), 0);
    0
}

/// Emits a [`ResetReceived`]; `skb` 0 when the packet is not at hand.
#[inline(always)]
pub fn report(sk: u64, skb: u64) {
    emit::<ResetReceived>(KIND_RESET_RECEIVED, sock::netns(sk), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            sock::fill(&raw mut (*out).sock, sk);
            if skb != 0 {
                packet::fill(&raw mut (*out).packet, skb);
            }
            opener::recall(&raw mut (*out).opener, sk);
        }
    });
}
