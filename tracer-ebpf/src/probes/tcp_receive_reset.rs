//! `tcp:tcp_receive_reset`: a socket of this host accepts a reset. Traced at the top of `tcp_reset`,
//! so the socket still has the state it had. Has no packet: the reset's ACK bit and TTL are
//! invisible here, which is why `tcp_reset.rs` is preferred.
//!
//! TP_PROTO 5.10 on: (struct sock *sk)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::reset;

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn tcp_receive_reset__rawtp(ctx: RawTracePointContext) -> i32 {
    reset::received(ctx.arg(0), 0);
    0
}
