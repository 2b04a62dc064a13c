//! How sockets ended: stored in an LRU map by `inet_sock_set_state`, and read when a later packet for that
//! tuple is answered with a reset.

use core::mem::MaybeUninit;

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::map, maps::LruHashMap};
use tracer_common::{
    record::{Flow, Packet, SocketEnd},
    wire::COUNTER_LOST,
};

use crate::{emit::count, sock, task};

/// A flow, with the socket's local side as source and its namespace in `pad`.
type Key = Flow;

/// The last 16384 connection ends of this host, about 2 MiB of kernel memory.
#[map]
static SOCKET_ENDS: LruHashMap<Key, SocketEnd> = LruHashMap::with_max_entries(16384, 0);

/// Stores how a socket left its state. The first transition from ESTABLISHED runs in the closing task; a
/// later one (FIN_WAIT1 -> … -> CLOSE) happens in softirq and must not replace it.
#[inline(always)]
pub fn remember(sk: u64, old: u8, new: u8) {
    const ESTABLISHED: u8 = 1;
    const CLOSE_WAIT: u8 = 8;
    let mut key = Flow { src_addr: [0; 16], dst_addr: [0; 16], src_port: 0, dst_port: 0, pad: 0 };
    // SAFETY: `key` and `end` are locals.
    unsafe { sock::fill_flow(&raw mut key, sk, true) };
    key.pad = sock::netns(sk);
    if old != ESTABLISHED && old != CLOSE_WAIT && SOCKET_ENDS.get_ptr(&key).is_some() {
        return;
    }
    let mut end = MaybeUninit::<SocketEnd>::zeroed();
    unsafe {
        let end = end.as_mut_ptr();
        (*end).ts_ns = bpf_ktime_get_ns();
        (*end).old_state = old;
        (*end).new_state = new;
        (*end).dead = u8::from(sock::is_dead(sk));
        (*end).err = sock::error(sk);
        (*end).idle_j = sock::idle_j(sk);
        task::fill(&raw mut (*end).task);
    }
    // A full map evicts its oldest entry. The insertion fails only in a run that interrupted another run in
    // the same map (EBUSY, kernel/bpf/hashtab.c, 5.11 on).
    if SOCKET_ENDS.insert(&key, unsafe { end.assume_init_ref() }, 0).is_err() {
        count(COUNTER_LOST);
    }
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
