//! `ip_vs_leave`: an IPVS service has no usable real server for a new connection. The SYN is dropped and
//! answered with an ICMP port unreachable, which to its sender looks like a closed port.
//!
//! proto 5.10 on: int(struct ip_vs_service *svc, struct sk_buff *skb, struct ip_vs_proto_data *pd,
//! struct ip_vs_iphdr *iph)
//!
//! Two kinds of packets pass nevertheless, as in the function itself (net/netfilter/ipvs/ip_vs_core.c):
//! those to another port of an FTP service's address, and those of a firewall mark with `cache_bypass`. A
//! mid-stream packet (`sloppy_tcp`) reaches this function only after its entry was lost, so only SYNs are
//! reported.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::kprobe, programs::ProbeContext};
use tracer_common::{
    record::{IpvsNoServer, Packet},
    wire::KIND_IPVS_NO_SERVER,
};

use crate::{
    emit::emit,
    ipvs,
    kread::{facts, read, read_or_zero},
    packet,
};

facts! {
    OFFSET_OF_ip_vs_service_DOT_port,
    OFFSET_OF_ip_vs_service_DOT_fwmark,
    OFFSET_OF_ip_vs_service_DOT_ipvs,
    OFFSET_OF_netns_ipvs_DOT_sysctl_cache_bypass,
}

/// include/net/ip_vs.h, FTPPORT
const FTP: u16 = 21;
const SYN: u8 = 2;
const ACK: u8 = 16;

#[kprobe(function = "ip_vs_leave")]
pub fn ip_vs_leave__kprobe(ctx: ProbeContext) -> u32 {
    report(&ctx);
    0
}

#[inline(always)]
fn report(ctx: &ProbeContext) -> Option<()> {
    let service: u64 = ctx.arg(0)?;
    let skb: u64 = ctx.arg(1)?;
    let mut dropped = MaybeUninit::<Packet>::zeroed();
    // SAFETY: all fields are integers, for which zero is a valid value.
    let dropped = unsafe {
        packet::fill(dropped.as_mut_ptr(), skb)?;
        dropped.assume_init()
    };
    if dropped.flags & (SYN | ACK) != SYN {
        return None;
    }
    let port = u16::from_be(read(service, OFFSET_OF_ip_vs_service_DOT_port.load())?);
    if port == FTP && dropped.flow.dst_port != FTP {
        return None;
    }
    let table: u64 = read(service, OFFSET_OF_ip_vs_service_DOT_ipvs.load())?;
    let bypass: u32 = read_or_zero(table, OFFSET_OF_netns_ipvs_DOT_sysctl_cache_bypass.load());
    let mark: u32 = read_or_zero(service, OFFSET_OF_ip_vs_service_DOT_fwmark.load());
    if bypass != 0 && mark != 0 {
        return None;
    }
    emit::<IpvsNoServer>(KIND_IPVS_NO_SERVER, ipvs::netns(table), |out| {
        // SAFETY: `out` is the record's payload.
        unsafe { (*out).packet = dropped };
    });
    Some(())
}
