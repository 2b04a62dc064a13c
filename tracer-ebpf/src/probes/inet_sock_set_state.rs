//! `sock:inet_sock_set_state`, for two things.
//!
//! * How a socket left ESTABLISHED, by whom: kept in an LRU map and read back when a later packet for
//!   that tuple is answered with a reset. Orderly ends never reach the ring. Cost: one map update for
//!   each connection end, nothing for other transitions.
//! * Where `inet_sk_error_report` does not exist (5.10), CLOSE with `sk_err` set is the same signal.
//!
//! TP_PROTO 5.10 on: (const struct sock *sk, const int oldstate, const int newstate)

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{map, raw_tracepoint},
    maps::LruHashMap,
    programs::RawTracePointContext,
};
use tracer_common::{
    record::{Flow, Packet, SocketEnd},
    wire::ABSENT,
};

use crate::{
    kread::facts,
    probes::inet_sk_error_report,
    sock::{self, TCP_CLOSE, TCP_FIN_WAIT1, TCP_LAST_ACK, TCP_SYN_RECV, TCP_SYN_SENT},
    task,
};

facts! { ARG_OF_btf_trace_inet_sk_error_report_DOT_sock }

/// A flow seen from the socket, `pad` holding the namespace.
type Key = Flow;

/// The last 16384 connection ends of this host, about 2 MiB of kernel memory.
#[map]
static SOCKET_ENDS: LruHashMap<Key, SocketEnd> = LruHashMap::with_max_entries(16384, 0);

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn inet_sock_set_state__rawtp(ctx: RawTracePointContext) -> i32 {
    let new: u32 = ctx.arg(2);
    let new = new as u8;
    if new != TCP_CLOSE && new != TCP_FIN_WAIT1 && new != TCP_LAST_ACK {
        return 0;
    }
    let old: u32 = ctx.arg(1);
    let old = old as u8;
    let sk = ctx.arg(0);
    if !sock::is_tcp(sk) {
        return 0;
    }
    if new == TCP_CLOSE
        && ARG_OF_btf_trace_inet_sk_error_report_DOT_sock.load() == ABSENT
        && sock::error(sk) != 0
    {
        inet_sk_error_report::report(&ctx, sk);
    }
    let was_open = old < TCP_CLOSE && old != TCP_SYN_SENT && old != TCP_SYN_RECV;
    // CLOSE_WAIT (8) is the only later state that still belongs to the application.
    if was_open || old == 8 {
        remember(sk, old, new);
    }
    0
}

/// The first step away from ESTABLISHED is the one that names the closer; a later one
/// (FIN_WAIT1 -> … -> CLOSE) happens in softirq and must not replace it.
#[inline(always)]
fn remember(sk: u64, old: u8, new: u8) {
    const ESTABLISHED: u8 = 1;
    const CLOSE_WAIT: u8 = 8;
    let mut key = Flow { src_addr: [0; 16], dst_addr: [0; 16], src_port: 0, dst_port: 0, pad: 0 };
    // SAFETY: `key` and `end` are ours.
    unsafe { sock::fill_flow(&raw mut key, sk, true) };
    key.pad = sock::netns(sk);
    if old != ESTABLISHED && old != CLOSE_WAIT && SOCKET_ENDS.get_ptr(&key).is_some() {
        return;
    }
    let mut end = core::mem::MaybeUninit::<SocketEnd>::zeroed();
    unsafe {
        let end = end.as_mut_ptr();
        (*end).ts_ns = bpf_ktime_get_ns();
        (*end).old_state = old;
        (*end).new_state = new;
        (*end).dead = u8::from(sock::is_dead(sk));
        (*end).err = sock::error(sk);
        task::fill(&raw mut (*end).task);
    }
    // A full map evicts its oldest: only ENOMEM can fail, and then there is nothing to recall.
    let _ = SOCKET_ENDS.insert(&key, unsafe { end.assume_init_ref() }, 0);
}

/// Copies the recorded end of the socket that `trigger` was meant for, if there is one.
///
/// # Safety
/// `out` must be writable and `trigger` readable.
#[inline(always)]
pub unsafe fn recall(out: *mut SocketEnd, trigger: *const Packet, netns: u32) {
    // SAFETY: per contract.
    unsafe {
        let flow = &raw const (*trigger).flow;
        let key = Flow {
            src_addr: (*flow).dst_addr,
            dst_addr: (*flow).src_addr,
            src_port: (*flow).dst_port,
            dst_port: (*flow).src_port,
            pad: netns,
        };
        if let Some(end) = SOCKET_ENDS.get_ptr(&key) {
            *out = *end;
        }
    }
}
