//! `ip_vs_conn_expire_now`: IPVS itself wants an entry gone (server removed, port reuse, sync). It only
//! re-arms the timer, so the mark left here is what tells a forced end from an idle one.
//!
//! proto 5.10 on: void(struct ip_vs_conn *cp)

use aya_ebpf::{macros::kprobe, programs::ProbeContext};

use crate::ipvs;

#[kprobe(function = "ip_vs_conn_expire_now")]
pub fn ip_vs_conn_expire_now__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(cp) = ctx.arg::<u64>(0) {
        ipvs::ask_to_end(cp);
    }
    0
}
