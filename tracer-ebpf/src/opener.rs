//! Which process connected a socket: kept from `connect()` on, because an application that closes as
//! soon as it sees the error leaves no descriptor behind to find it by.
//!
//! Accepted sockets have none: they are born in softirq, where `current` is a bystander.

use aya_ebpf::{Global, macros::map, maps::LruHashMap};
use tracer_common::record::Opener;

use crate::{sock, task};

/// 0: nothing is kept and nothing looked up. Frozen, so the verifier prunes the code.
#[unsafe(no_mangle)]
static KEEP_OPENERS: Global<u32> = Global::new(1);

/// By socket address: the connections that this host's processes have made and that still live. About
/// 4 MiB of kernel memory. Beyond that the oldest is forgotten.
#[map]
static OPENERS: LruHashMap<u64, Opener> = LruHashMap::with_max_entries(32768, 0);

/// In the connecting process: remembers it.
#[inline(always)]
pub fn keep(sk: u64) {
    if KEEP_OPENERS.load() == 0 {
        return;
    }
    let mut opener = core::mem::MaybeUninit::<Opener>::zeroed();
    // SAFETY: `opener` is ours, and zero is a valid value.
    let opener = unsafe {
        task::fill_opener(opener.as_mut_ptr());
        let opener = opener.assume_init_mut();
        opener.remote_port = sock::remote_port(sk);
        opener
    };
    // NFS and its like connect from a worker of the kernel, which is nobody's process.
    if opener.tgid != 0 {
        // A full map evicts its oldest. One that is not kept is looked up like one that is older than we.
        let _ = OPENERS.insert(&sk, opener, 0);
    }
}

/// The socket is closed: its address will be another's.
#[inline(always)]
pub fn forget(sk: u64) {
    if KEEP_OPENERS.load() != 0 {
        // Accepted sockets are not in it.
        let _ = OPENERS.remove(&sk);
    }
}

/// Copies the process that connected a full socket, if it is on record. One whose end was missed (the
/// kernel skips a tracepoint that interrupts itself) had another port at the other end.
///
/// # Safety
/// `out` must be writable.
#[inline(always)]
pub unsafe fn recall(out: *mut Opener, sk: u64) {
    if KEEP_OPENERS.load() == 0 {
        return;
    }
    if let Some(opener) = OPENERS.get_ptr(&sk) {
        // SAFETY: per contract; a map value is readable.
        unsafe {
            if (*opener).remote_port == sock::remote_port(sk) {
                *out = *opener;
            }
        }
    }
}
