//! `tcp:tcp_receive_reset`: a socket of this host accepts a reset. Traced at the start of `tcp_reset`, so
//! the socket still has its old state. The tracepoint has no packet, so the ACK bit and TTL of the reset
//! cannot be read, which is why `tcp_reset.rs` is preferred.
//!
//! TP_PROTO 5.10 on: (struct sock *sk)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::reset;

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn tcp_receive_reset__rawtp(ctx: RawTracePointContext) -> i32 {
    reset::received(ctx.arg(0), 0);
    0
}
