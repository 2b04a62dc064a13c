//! `ip_vs_conn_expire`: an IPVS entry ends, by its timer or on request (the stack and
//! `ip_vs_conn_expire_now.rs` show which). With `vs/conntrack` the function deletes the conntrack entry
//! next.
//!
//! proto 5.10 on: void(struct timer_list *t)
//!
//! The function sets the timer to 60 s when the entry is still in use; only `n_control == 0 && refcnt == 1`
//! is an end (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_unlink). Orderly ends (TIME_WAIT, LAST_ACK,
//! CLOSE) return here.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};

use crate::ipvs;

#[kprobe(function = "ip_vs_conn_expire")]
pub fn ip_vs_conn_expire__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(timer) = ctx.arg(0) {
        ipvs::entry_ended(&ctx, timer);
    }
    0
}
