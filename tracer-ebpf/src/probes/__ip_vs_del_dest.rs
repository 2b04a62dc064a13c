//! `__ip_vs_del_dest`: somebody takes a real server out of an IPVS service, or deletes the service. The
//! entries of its connections stay, and unless `vs/expire_nodest_conn` is set every further packet of
//! them is dropped without a word: this is the only place that names who did it.
//!
//! proto 5.10 on: void(struct netns_ipvs *ipvs, struct ip_vs_dest *dest, bool cleanup)
//!
//! It cannot tell whether the same server is added again; `ip_vs_conn_expire.rs` reads from the entry
//! whether it was.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{record::IpvsServerRemoved, wire::KIND_IPVS_SERVER_REMOVED};

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
}

#[kprobe(function = "__ip_vs_del_dest")]
pub fn __ip_vs_del_dest__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx);
    0
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
    emit::<IpvsServerRemoved>(KIND_IPVS_SERVER_REMOVED, packet::netns_of_net(net), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe {
            let forward = &raw mut (*out).forward;
            (*forward).src_addr = address(dest, OFFSET_OF_ip_vs_dest_DOT_vaddr.load(), v6);
            (*forward).src_port =
                u16::from_be(read_or_zero(dest, OFFSET_OF_ip_vs_dest_DOT_vport.load()));
            (*forward).dst_addr = address(dest, OFFSET_OF_ip_vs_dest_DOT_addr.load(), v6);
            (*forward).dst_port =
                u16::from_be(read_or_zero(dest, OFFSET_OF_ip_vs_dest_DOT_port.load()));
            copy!(out.flags, dest, OFFSET_OF_ip_vs_dest_DOT_conn_flags);
            task::fill(&raw mut (*out).task);
        }
    });
    Some(())
}
