//! `nf_send_unreach` and `nf_send_unreach6`: a firewall rule drops a packet and answers with an ICMP
//! error (nft `reject`, whose default this is, and iptables `REJECT`). A connect fails with the error's
//! errno at once; an established connection stores the error, continues to send, and fails with it when the
//! retries end.
//!
//! proto 5.10 on: void(struct sk_buff *skb_in, int code, int hook)
//! proto 5.10 on: void(struct net *net, struct sk_buff *skb_in, unsigned char code, unsigned int hooknum)
//!
//! When a packet reaches a filter chain, NAT has already changed its destination, so its sender knows another
//! tuple. The packet's conntrack entry has both tuples.
//!
//! This hook cannot see whether the ICMP error was sent, because the kernel limits their rate.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{record::RuleReject, wire::KIND_RULE_REJECT};

use crate::{conntrack, emit::emit, packet, task};

#[kprobe(function = "nf_send_unreach")]
pub fn nf_send_unreach__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg(0) {
        report(&ctx, skb);
    }
    0
}

#[kprobe(function = "nf_send_unreach6")]
pub fn nf_send_unreach6__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(skb) = ctx.arg(1) {
        report(&ctx, skb);
    }
    0
}

#[inline(always)]
fn report(ctx: &ProbeContext, skb: u64) -> Option<()> {
    // Rules also reject other protocols. The packet is filled in place: with all calls, a program of 5.10 and 6.1 has
    // 512 bytes of stack.
    if !packet::may_be_tcp(skb)? {
        return None;
    }
    let entry = conntrack::of_packet(skb);
    emit::<RuleReject>(KIND_RULE_REJECT, packet::netns(skb), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            packet::fill(&raw mut (*out).packet, skb);
            (*out).entry = conntrack::entry_state(entry);
            task::fill_stack(ctx, &raw mut (*out).stack);
            if conntrack::translates(entry) {
                conntrack::fill_tuples(&raw mut (*out).original, &raw mut (*out).reply, entry);
            }
        }
    });
    Some(())
}
