//! `__ip_vs_del_dest`: somebody takes a real server out of an IPVS service, or deletes the service. The
//! entries of its connections stay, and unless `vs/expire_nodest_conn` is set every further packet of
//! them is dropped without a word: this is the only place that names who did it.
//!
//! proto 5.10 on: void(struct netns_ipvs *ipvs, struct ip_vs_dest *dest, bool cleanup)
//!
//! What IPVS then drops passes no function of its own (net/netfilter/ipvs/ip_vs_core.c, ip_vs_in), only
//! `kfree_skb`, as every dropped packet does: this hook tells `kfree_skb.rs` for which services to look,
//! and until when.
//!
//! It cannot tell whether the same server is added again; `ip_vs_conn_expire.rs` reads from the entry
//! whether it was.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_ns,
    macros::{kprobe, map},
    maps::{Array, LruHashMap},
    programs::ProbeContext,
};
use tracer_common::{
    record::{Flow, IpvsServerRemoved},
    wire::KIND_IPVS_SERVER_REMOVED,
};

use crate::{
    emit::emit,
    kread::{copy, facts, read, read_or_zero},
    packet,
    probes::ip_vs_conn_expire::{AF_INET6, IPPROTO_TCP, OFFSET_OF_netns_ipvs_DOT_net, address},
    task,
};

facts! {
    OFFSET_OF_ip_vs_dest_DOT_af,
    OFFSET_OF_ip_vs_dest_DOT_addr,
    OFFSET_OF_ip_vs_dest_DOT_port,
    OFFSET_OF_ip_vs_dest_DOT_protocol,
    OFFSET_OF_ip_vs_dest_DOT_vaddr,
    OFFSET_OF_ip_vs_dest_DOT_vport,
    OFFSET_OF_ip_vs_dest_DOT_conn_flags,
    OFFSET_OF_netns_ipvs_DOT_sysctl_expire_nodest_conn,
}

/// A virtual service.
#[repr(C)]
#[derive(Clone, Copy)]
struct Service {
    address: [u8; 16],
    netns: u32,
    /// Host order; 32 bits leave no padding.
    port: u32,
}

/// Services that have lost a real server. The value says nothing.
#[map]
static BEREFT: LruHashMap<Service, u32> = LruHashMap::with_max_entries(4096, 0);

/// Until when dropped packets are looked at, `bpf_ktime_get_ns`; 0 for never.
#[map]
static LOOK_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// Entries without a server are not re-armed, and end when their timeout has run: 900 s by default.
const LOOK_NS: u64 = 3600 * 1_000_000_000;

#[kprobe(function = "__ip_vs_del_dest")]
pub fn __ip_vs_del_dest__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx);
    0
}

/// Whether IPVS may be dropping packets for want of a server.
#[inline(always)]
pub fn is_looked_for() -> bool {
    match LOOK_UNTIL.get(0) {
        Some(until) => *until != 0 && unsafe { bpf_ktime_get_ns() } < *until,
        None => false,
    }
}

/// Whether the receiver of a packet is a service that has lost a real server.
#[inline(always)]
pub fn is_bereft(flow: &Flow, netns: u32) -> bool {
    let service = Service { address: flow.dst_addr, netns, port: u32::from(flow.dst_port) };
    // SAFETY: the value is not read.
    unsafe { BEREFT.get(&service) }.is_some()
}

/// With `vs/expire_nodest_conn` nothing is dropped in silence.
#[inline(always)]
fn look(ipvs: u64, netns: u32, service: &Flow) {
    let expire: u32 = read_or_zero(ipvs, OFFSET_OF_netns_ipvs_DOT_sysctl_expire_nodest_conn.load());
    if expire != 0 {
        return;
    }
    let service = Service { address: service.src_addr, netns, port: u32::from(service.src_port) };
    // An eviction of the service that lost a server longest ago is the only failure, and harmless.
    let _ = BEREFT.insert(&service, &0, 0);
    if let Some(until) = LOOK_UNTIL.get_ptr_mut(0) {
        // SAFETY: a word of the map; whoever writes last is right.
        unsafe { *until = bpf_ktime_get_ns() + LOOK_NS };
    }
}

#[inline(always)]
fn report(ctx: &ProbeContext) -> Option<()> {
    let ipvs: u64 = ctx.arg(0)?;
    let dest: u64 = ctx.arg(1)?;
    if read::<u16>(dest, OFFSET_OF_ip_vs_dest_DOT_protocol.load())? != IPPROTO_TCP {
        return None;
    }
    let v6 = read::<u16>(dest, OFFSET_OF_ip_vs_dest_DOT_af.load())? == AF_INET6;
    let net: u64 = read_or_zero(ipvs, OFFSET_OF_netns_ipvs_DOT_net.load());
    let netns = packet::netns_of_net(net);
    let forward = Flow {
        src_addr: address(dest, OFFSET_OF_ip_vs_dest_DOT_vaddr.load(), v6),
        src_port: u16::from_be(read_or_zero(dest, OFFSET_OF_ip_vs_dest_DOT_vport.load())),
        dst_addr: address(dest, OFFSET_OF_ip_vs_dest_DOT_addr.load(), v6),
        dst_port: u16::from_be(read_or_zero(dest, OFFSET_OF_ip_vs_dest_DOT_port.load())),
        pad: 0,
    };
    look(ipvs, netns, &forward);
    emit::<IpvsServerRemoved>(KIND_IPVS_SERVER_REMOVED, netns, |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            (*out).forward = forward;
            copy!(out.flags, dest, OFFSET_OF_ip_vs_dest_DOT_conn_flags);
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
        }
    });
    Some(())
}
