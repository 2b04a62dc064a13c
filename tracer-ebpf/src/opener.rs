//! Which process connected a socket. The process is stored at `connect()`, because an application that
//! closes the socket as soon as it gets the error has no descriptor left by which user space could find it.
//!
//! Accepted sockets have no such process: they are created in softirq, where `current` is an unrelated task.

use aya_ebpf::{Global, macros::map, maps::LruHashMap};
use tracer_common::record::Opener;

use crate::{sock, task};

/// With 0 nothing is stored or looked up. The value is frozen, so the verifier prunes the code.
#[unsafe(no_mangle)]
static KEEP_OPENERS: Global<u32> = Global::new(1);

/// The open connections made by processes of this host, by socket address. About 4 MiB of kernel memory. A
/// full map evicts its oldest entry.
#[map]
static OPENERS: LruHashMap<u64, Opener> = LruHashMap::with_max_entries(32768, 0);

/// Stores the current process, which is the connecting one.
#[inline(always)]
pub fn keep(sk: u64) {
    if KEEP_OPENERS.load() == 0 {
        return;
    }
    let mut opener = core::mem::MaybeUninit::<Opener>::zeroed();
    // SAFETY: `opener` is a local, and zero is a valid value.
    let opener = unsafe {
        task::fill_opener(opener.as_mut_ptr());
        let opener = opener.assume_init_mut();
        opener.remote_port = sock::remote_port(sk);
        opener
    };
    // NFS and other kernel clients connect from a kernel worker, which is not a process.
    if opener.tgid != 0 {
        // A full map evicts its oldest entry. User space then looks up the process, as for a connection made
        // before tracing began.
        let _ = OPENERS.insert(&sk, opener, 0);
    }
}

/// Removes a closed socket, because the kernel will reuse its address.
#[inline(always)]
pub fn forget(sk: u64) {
    if KEEP_OPENERS.load() != 0 {
        // Fails for accepted sockets, which are not in the map.
        let _ = OPENERS.remove(&sk);
    }
}

/// Copies the process that connected a full socket, if it is stored. The remote port is compared, because
/// the entry may be of an earlier socket whose end was missed (the kernel skips a tracepoint that
/// interrupts itself).
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
