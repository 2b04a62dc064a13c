//! `nf_nat_unregister_fn`: a NAT chain (or the nat table of iptables) is removed. With the last one of its family in a
//! namespace, netfilter stops to translate there, also the packets of established connections, whose entries stay.
//! Removing rules alone does not call it: established connections then keep their translation.
//!
//! proto 5.10 on: void(struct net *net, u8 pf, const struct nf_hook_ops *ops, unsigned int ops_count)
//!
//! The number of chains that are left is in data that belongs to the module; user space counts the chains instead.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{record::NatChainRemoved, wire::KIND_NAT_CHAIN_REMOVED};

use crate::{emit::emit, packet, task};

#[kprobe(function = "nf_nat_unregister_fn")]
pub fn nf_nat_unregister_fn__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx);
    0
}

#[inline(always)]
fn report(ctx: &ProbeContext) -> Option<()> {
    let net: u64 = ctx.arg(0)?;
    let family: u8 = ctx.arg(1)?;
    emit::<NatChainRemoved>(KIND_NAT_CHAIN_REMOVED, packet::netns_of_net(net), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            (*out).family = u32::from(family);
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
        }
    });
    Some(())
}
