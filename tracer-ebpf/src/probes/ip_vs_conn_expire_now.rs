//! `ip_vs_conn_expire_now`: IPVS itself ends an entry (server removed, port reuse, sync). The function only
//! sets the timer, so this program stores the request, which distinguishes a forced end from an idle
//! timeout.
//!
//! proto 5.10 on: void(struct ip_vs_conn *cp)

use aya_ebpf::{macros::kprobe, programs::ProbeContext};

use crate::ipvs;

#[kprobe(function = "ip_vs_conn_expire_now")]
pub fn ip_vs_conn_expire_now__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(cp) = ctx.arg::<u64>(0) {
        ipvs::request_end(cp);
    }
    0
}
