//! `tcp:tcp_send_reset`: this host sends a reset. From 6.10 on the tracepoint has the reason.
//!
//! TP_PROTO before 6.10: `(const struct sock *sk, const struct sk_buff *skb)`, only for full
//! sockets; `tcp_v4_send_reset.rs` covers the rest there.
//! From 6.10: `(sk, skb, enum sk_rst_reason reason)`, `sk` may be NULL or a mini-socket.
//!
//! `skb` is NULL for an active reset (`tcp_send_active_reset`), which is traced *after* the packet was
//! sent: over veth or loopback the receiver's events come first. Otherwise `skb` is the packet that is
//! answered, traced before the answer is sent.

use aya_ebpf::{Global, macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::{record::VIA_TRACEPOINT, wire::ABSENT};

use crate::{
    backup_program::{Pair, done, is_done},
    kread::facts,
    reset,
};

facts! { ARG_OF_btf_trace_tcp_send_reset_DOT_sk_rst_reason }

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn tcp_send_reset__rawtp(ctx: RawTracePointContext) -> i32 {
    handle(&ctx);
    done(Pair::SendReset, mark(&ctx));
    0
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn tcp_send_reset_backup__rawtp(ctx: RawTracePointContext) -> i32 {
    if !is_done(Pair::SendReset, mark(&ctx)) {
        handle(&ctx);
    }
    0
}

/// Identifies this reset among all on a CPU.
#[inline(always)]
fn mark(ctx: &RawTracePointContext) -> u64 {
    ctx.arg::<u64>(0) ^ ctx.arg::<u64>(1)
}

#[inline(always)]
fn handle(ctx: &RawTracePointContext) {
    // A literal index: the verifier rejects a variable one, and prunes the arm where absent.
    let reason = match has(&ARG_OF_btf_trace_tcp_send_reset_DOT_sk_rst_reason) {
        true => ctx.arg::<u64>(2) as u32,
        false => ABSENT,
    };
    reset::sent(ctx, ctx.arg(0), ctx.arg(1), 0, reason, VIA_TRACEPOINT);
}

#[inline(always)]
fn has(fact: &Global<u32>) -> bool {
    fact.load() != ABSENT
}
