//! `sock:inet_sock_set_state`, for three purposes.
//!
//! * A socket is closed with `sk_err` set: its application loses the connection. The stack has the timer
//!   that closed the socket, which a hook on `tcp_write_err` (inlined everywhere) cannot show.
//!   `inet_sk_error_report` (6.1 on) would be the obvious hook, but it is traced after the application was
//!   woken. The application may then have read and cleared `sk_err` on another CPU. This tracepoint runs
//!   before that, on every kernel.
//! * How a socket left ESTABLISHED, and in which task: see `socket_end.rs`. Orderly ends emit no record.
//!   Cost: one map update for each connection end, none for other transitions.
//! * CLOSE -> SYN_SENT happens in the process that calls `connect()`: see `opener.rs`. Cost: one map
//!   update for each connection made, one map removal for each that ends.
//!
//! TP_PROTO 5.10 on: (const struct sock *sk, const int oldstate, const int newstate); `sk_state` is
//! still the old one.

use aya_ebpf::{EbpfContext, macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::{record::SocketError, wire::KIND_SOCKET_ERROR};

use crate::{
    backup_program::{Pair, done, is_done},
    emit::emit,
    opener,
    sock::{self, TCP_CLOSE, TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_SYN_RECV, TCP_SYN_SENT},
    socket_end, task,
};

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn inet_sock_set_state__rawtp(ctx: RawTracePointContext) -> i32 {
    if let Some(change) = Change::of(&ctx) {
        change.handle(&ctx);
        done(Pair::SetState, change.mark());
    }
    0
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn inet_sock_set_state_backup__rawtp(ctx: RawTracePointContext) -> i32 {
    if let Some(change) = Change::of(&ctx)
        && !is_done(Pair::SetState, change.mark())
    {
        change.handle(&ctx);
    }
    0
}

/// A state transition that is handled.
struct Change {
    sk: u64,
    old: u8,
    new: u8,
}

impl Change {
    #[inline(always)]
    fn of(ctx: &RawTracePointContext) -> Option<Self> {
        let new: u32 = ctx.arg(2);
        let new = new as u8;
        if new != TCP_CLOSE && new != TCP_FIN_WAIT1 && new != TCP_LAST_ACK && new != TCP_SYN_SENT {
            return None;
        }
        let old: u32 = ctx.arg(1);
        let sk = ctx.arg(0);
        sock::is_tcp(sk).then_some(Self { sk, old: old as u8, new })
    }

    /// Identifies this transition among all on a CPU. The alignment of sockets leaves the low three bits
    /// free.
    #[inline(always)]
    fn mark(&self) -> u64 {
        self.sk | u64::from(self.new & 7)
    }

    #[inline(always)]
    fn handle(&self, ctx: &impl EbpfContext) {
        let Self { sk, old, new } = *self;
        if new == TCP_SYN_SENT {
            opener::keep(sk);
            return;
        }
        let error = sock::error(sk);
        // No process holds an orphaned socket, so its end affects no application.
        if new == TCP_CLOSE && error != 0 && !sock::is_dead(sk) {
            report(ctx, sk, error);
        }
        let was_open = old < TCP_CLOSE && old != TCP_SYN_SENT && old != TCP_SYN_RECV;
        // CLOSE_WAIT (8) is the only later state that still belongs to the application.
        if was_open || old == 8 {
            socket_end::remember(sk, old, new);
        }
        if new == TCP_CLOSE {
            opener::forget(sk);
        }
    }
}

/// Emits a [`SocketError`].
#[inline(always)]
fn report(ctx: &impl EbpfContext, sk: u64, error: u32) {
    emit::<SocketError>(KIND_SOCKET_ERROR, sock::netns(sk), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            sock::fill(&raw mut (*out).sock, sk);
            // The value read before, because the application may have cleared it meanwhile.
            (*out).sock.err = error;
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
            opener::recall(&raw mut (*out).opener, sk);
        }
    });
}
