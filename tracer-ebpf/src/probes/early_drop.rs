//! `early_drop`: the conntrack table is over its maximum, and the function searches for an entry to evict.
//! When it finds none (returns 0) the current packet is dropped by the next `kfree_skb` of this task on
//! this CPU.
//!
//! proto 5.10 on: int(struct net *net, unsigned int hash)

use aya_ebpf::{macros::kretprobe, programs::RetProbeContext};

use crate::full_table;

#[kretprobe(function = "early_drop")]
pub fn early_drop__kretprobe(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u32>() == 0 {
        full_table::expect_drop();
    }
    0
}
