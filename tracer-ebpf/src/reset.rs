//! The records of resets, for all hooks that report one.

use aya_ebpf::EbpfContext;
use tracer_common::{
    record::{ResetReceived, ResetSent, VIA_NETFILTER},
    wire::{KIND_RESET_RECEIVED, KIND_RESET_SENT},
};

use crate::{conntrack, emit::emit, opener, packet, sock, socket_end, task};

/// Emits a [`ResetSent`]. With `netns` 0 the namespace is read from the socket, else from the packet.
#[inline(always)]
pub fn sent(ctx: &impl EbpfContext, sk: u64, skb: u64, netns: u32, reason: u32, via: u32) {
    let mut netns = netns;
    if netns == 0 {
        netns = sock::netns(sk);
    }
    if netns == 0 && skb != 0 {
        netns = packet::netns(skb);
    }
    emit::<ResetSent>(KIND_RESET_SENT, netns, |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            (*out).reason = reason;
            (*out).via = via;
            if via == VIA_NETFILTER {
                (*out).entry = conntrack::entry_state(conntrack::of_packet(skb));
            }
            sock::fill(&raw mut (*out).sock, sk);
            if skb != 0 && packet::fill(&raw mut (*out).trigger, skb).is_some() {
                socket_end::recall(&raw mut (*out).end, &raw const (*out).trigger, netns);
            }
            if sk != 0 {
                opener::recall(&raw mut (*out).opener, sk);
            }
            task::fill(&raw mut (*out).task);
            // Without a socket the stack adds nothing to the trigger, and a port scan causes many such
            // records.
            if sk != 0 || via == VIA_NETFILTER {
                task::fill_stack(ctx, &raw mut (*out).stack);
            }
        }
    });
}

/// Emits a [`ResetReceived`]. `skb` is 0 when the hook has no packet.
#[inline(always)]
pub fn received(sk: u64, skb: u64) {
    emit::<ResetReceived>(KIND_RESET_RECEIVED, sock::netns(sk), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            sock::fill(&raw mut (*out).sock, sk);
            if skb != 0 {
                packet::fill(&raw mut (*out).packet, skb);
            }
            opener::recall(&raw mut (*out).opener, sk);
        }
    });
}
