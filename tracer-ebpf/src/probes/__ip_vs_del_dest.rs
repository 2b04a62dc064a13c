//! `__ip_vs_del_dest`: a task removes a real server from an IPVS service, or deletes the service. The
//! entries of the server's connections remain, and unless `vs/expire_nodest_conn` is set IPVS drops each of
//! their further packets without an answer. Only this function runs in the task that removes the server.
//!
//! proto 5.10 on: void(struct netns_ipvs *ipvs, struct ip_vs_dest *dest, bool cleanup)
//!
//! IPVS calls no separate function for these drops (net/netfilter/ipvs/ip_vs_core.c, ip_vs_in), only
//! `kfree_skb`, like every drop. This hook therefore stores the services that `kfree_skb.rs` has to check,
//! and until when.
//!
//! This hook cannot see whether the same server is added again; `ip_vs_conn_expire.rs` reads that from the
//! entry.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{
    net::{AF_INET6, IPPROTO_TCP},
    record::{Flow, IpvsServerRemoved},
    wire::KIND_IPVS_SERVER_REMOVED,
};

use crate::{
    emit::emit,
    ipvs::{self, address},
    kread::{copy, facts, read, read_or_zero},
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
}

#[kprobe(function = "__ip_vs_del_dest")]
pub fn __ip_vs_del_dest__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx);
    0
}

#[inline(always)]
fn report(ctx: &ProbeContext) -> Option<()> {
    let table: u64 = ctx.arg(0)?;
    let dest: u64 = ctx.arg(1)?;
    if read::<u16>(dest, OFFSET_OF_ip_vs_dest_DOT_protocol.load())? != u16::from(IPPROTO_TCP) {
        return None;
    }
    let v6 = read::<u16>(dest, OFFSET_OF_ip_vs_dest_DOT_af.load())? == u16::from(AF_INET6);
    let netns = ipvs::netns(table);
    let forward = Flow {
        src_addr: address(dest, OFFSET_OF_ip_vs_dest_DOT_vaddr.load(), v6),
        src_port: u16::from_be(read_or_zero(dest, OFFSET_OF_ip_vs_dest_DOT_vport.load())),
        dst_addr: address(dest, OFFSET_OF_ip_vs_dest_DOT_addr.load(), v6),
        dst_port: u16::from_be(read_or_zero(dest, OFFSET_OF_ip_vs_dest_DOT_port.load())),
        pad: 0,
    };
    ipvs::server_removed(table, netns, &forward);
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
