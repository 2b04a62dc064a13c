//! `nf_send_reset` and `nf_send_reset6`: a firewall rule answers with a reset (nft `reject with tcp
//! reset`, iptables `REJECT --reject-with tcp-reset`). No tracepoint reports these. The function sends nothing for a
//! reset or a fragment (`nf_reject_ip_tcphdr_get`, nf_reject_ipv4.c), nor for a bad checksum, which is not tested here.
//!
//! proto 5.10 on: void(struct net *net, struct sock *sk, struct sk_buff *oldskb, int hook)

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{record::VIA_NETFILTER, wire::ABSENT};

use crate::{packet, reset};

#[kprobe(function = "nf_send_reset")]
pub fn nf_send_reset__kprobe(ctx: ProbeContext) -> u32 {
    reject(&ctx);
    0
}

#[kprobe(function = "nf_send_reset6")]
pub fn nf_send_reset6__kprobe(ctx: ProbeContext) -> u32 {
    reject(&ctx);
    0
}

#[inline(always)]
fn reject(ctx: &ProbeContext) -> Option<()> {
    let net: u64 = ctx.arg(0)?;
    let skb: u64 = ctx.arg(2)?;
    if !packet::may_be_reset(skb) {
        return None;
    }
    reset::sent(ctx, 0, skb, packet::netns_of_net(net), ABSENT, VIA_NETFILTER);
    Some(())
}
