//! `nf_ct_l4proto_log_invalid`: conntrack marks a packet INVALID, whether or not it logs that. Such a
//! packet is not translated: with NAT it reaches a host that does not know its tuple and answers with a
//! reset.
//!
//! proto 5.10:   void(const struct sk_buff *skb, const struct nf_conn *ct, const char *fmt, ...)
//! proto 6.1 on: void(skb, ct, const struct nf_hook_state *state, const char *fmt, ...)
//!
//! Also called for packets that are only ignored and remain tracked. The two differ in the reset that an
//! untranslated packet causes. With `tcp_be_liberal` a segment outside the window is not INVALID, and this
//! function is not called.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::wire::KIND_CONNTRACK_INVALID;

use crate::conntrack;

#[kprobe(function = "nf_ct_l4proto_log_invalid")]
pub fn nf_ct_l4proto_log_invalid__kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(skb), Some(ct)) = (ctx.arg(0), ctx.arg(1)) {
        conntrack::report(KIND_CONNTRACK_INVALID, skb, ct);
    }
    0
}
