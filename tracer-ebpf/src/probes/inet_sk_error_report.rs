//! `sock:inet_sk_error_report`: an error is about to wake the application. The stack names the timer
//! that gave up, which `tcp_write_err` (inlined everywhere) cannot.
//!
//! TP_PROTO 6.1 on: (const struct sock *sk); absent on 5.10, see `inet_sock_set_state.rs`.
//! `sk_err` is 0 for reports after a failed connect; those are not errors.

use aya_ebpf::{EbpfContext, macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::{record::SocketError, wire::KIND_SOCKET_ERROR};

use crate::{emit::emit, sock, task};

#[raw_tracepoint(tracepoint = "inet_sk_error_report")]
pub fn inet_sk_error_report__rawtp(ctx: RawTracePointContext) -> i32 {
    let sk = ctx.arg(0);
    if sock::is_full(sock::state(sk)) && sock::is_tcp(sk) && sock::error(sk) != 0 {
        report(&ctx, sk);
    }
    0
}

/// Emits a [`SocketError`].
#[inline(always)]
pub fn report(ctx: &impl EbpfContext, sk: u64) {
    emit::<SocketError>(KIND_SOCKET_ERROR, sock::netns(sk), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            sock::fill(&raw mut (*out).sock, sk);
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
        }
    });
}
