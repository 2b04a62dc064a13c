//! `timer:timer_expire_entry`: a kernel timer expires. Used for the end of IPVS entries where there are no
//! kprobes. The program compares the timer's function first, and returns unless it is the one of IPVS. Ends
//! that do not come from the timer (a removed server, the drop_entry defence) are not traced this way.
//!
//! TP_PROTO 5.10 on: (struct timer_list *timer, unsigned long baseclk)

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::{
    ipvs,
    kread::{addresses, facts, read},
};

facts! { OFFSET_OF_timer_list_DOT_function }
addresses! { ADDRESS_OF_ip_vs_conn_expire }

#[raw_tracepoint(tracepoint = "timer_expire_entry")]
pub fn timer_expire_entry__rawtp(ctx: RawTracePointContext) -> i32 {
    let timer: u64 = ctx.arg(0);
    let expire = ADDRESS_OF_ip_vs_conn_expire.load();
    if expire != 0 && read(timer, OFFSET_OF_timer_list_DOT_function.load()) == Some(expire) {
        ipvs::entry_ended(&ctx, timer);
    }
    0
}
