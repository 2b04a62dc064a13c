//! `ip_vs_conn_expire`: an IPVS entry ends, by its timer or because somebody asked (the stack and
//! `ip_vs_conn_expire_now.rs` tell which). With `vs/conntrack` it deletes the conntrack entry next.
//!
//! proto 5.10 on: void(struct timer_list *t)
//!
//! The function re-arms itself for 60 s when the entry is still in use; only `n_control == 0 &&
//! refcnt == 1` is an end (net/netfilter/ipvs/ip_vs_conn.c, ip_vs_conn_unlink). Orderly ends
//! (TIME_WAIT, LAST_ACK, CLOSE) return here.

use aya_ebpf::{EbpfContext, macros::kprobe, programs::ProbeContext};
use tracer_common::{
    record::IpvsEnd,
    wire::{ABSENT, KIND_IPVS_END},
};

use crate::{
    emit::emit,
    kread::{copy, facts, read, read_or_zero},
    packet,
    probes::ip_vs_conn_expire_now,
    task,
};

facts! {
    OFFSET_OF_ip_vs_conn_DOT_timer,
    OFFSET_OF_ip_vs_conn_DOT_af,
    SIZE_OF_ip_vs_conn_DOT_af,
    OFFSET_OF_ip_vs_conn_DOT_protocol,
    OFFSET_OF_ip_vs_conn_DOT_caddr,
    OFFSET_OF_ip_vs_conn_DOT_vaddr,
    OFFSET_OF_ip_vs_conn_DOT_daddr,
    OFFSET_OF_ip_vs_conn_DOT_cport,
    OFFSET_OF_ip_vs_conn_DOT_vport,
    OFFSET_OF_ip_vs_conn_DOT_dport,
    OFFSET_OF_ip_vs_conn_DOT_flags,
    OFFSET_OF_ip_vs_conn_DOT_state,
    OFFSET_OF_ip_vs_conn_DOT_timeout,
    OFFSET_OF_ip_vs_conn_DOT_refcnt,
    OFFSET_OF_ip_vs_conn_DOT_n_control,
    OFFSET_OF_ip_vs_conn_DOT_ipvs,
    OFFSET_OF_ip_vs_conn_DOT_dest,
    OFFSET_OF_ip_vs_dest_DOT_flags,
    OFFSET_OF_ip_vs_dest_DOT_cflags,
    OFFSET_OF_netns_ipvs_DOT_net,
    OFFSET_OF_timer_list_DOT_expires,
}

pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
/// include/uapi/linux/ip_vs.h
const IP_VS_CONN_F_TEMPLATE: u32 = 0x1000;
const IP_VS_CONN_F_ONE_PACKET: u32 = 0x2000;
/// include/net/ip_vs.h
const IP_VS_DEST_F_AVAILABLE: u32 = 1;
/// include/net/ip_vs.h, IP_VS_TCP_S_*
const TIME_WAIT: u16 = 5;
const CLOSE: u16 = 6;
const LAST_ACK: u16 = 8;

#[kprobe(function = "ip_vs_conn_expire")]
pub fn ip_vs_conn_expire__kprobe(ctx: ProbeContext) -> u32 {
    if let Some(timer) = ctx.arg(0) {
        report(&ctx, timer);
    }
    0
}

/// An address of an IPVS struct (`union nf_inet_addr`), as 16 bytes.
#[inline(always)]
pub fn address(base: u64, offset: u32, v6: bool) -> [u8; 16] {
    if v6 { read_or_zero(base, offset) } else { packet::mapped(read_or_zero(base, offset)) }
}

/// 1 when the entry's real server is no longer part of its service. The flag moved from `flags` to
/// `cflags` in 7.x and in stable 6.12.
#[inline(always)]
fn server_gone(cp: u64) -> u32 {
    let dest: u64 = read_or_zero(cp, OFFSET_OF_ip_vs_conn_DOT_dest.load());
    if dest == 0 {
        return 0;
    }
    let flags: Option<u32> = match OFFSET_OF_ip_vs_dest_DOT_cflags.load() {
        ABSENT => read(dest, OFFSET_OF_ip_vs_dest_DOT_flags.load()),
        offset => read(dest, offset),
    };
    flags.map_or(0, |flags| u32::from(flags & IP_VS_DEST_F_AVAILABLE == 0))
}

/// Emits an [`IpvsEnd`] for the entry whose timer this is, unless it is an orderly end or none.
#[inline(always)]
pub fn report(ctx: &impl EbpfContext, timer: u64) -> Option<()> {
    let offset = OFFSET_OF_ip_vs_conn_DOT_timer.load();
    if offset == ABSENT {
        return None;
    }
    let cp = timer - u64::from(offset);
    if read::<u16>(cp, OFFSET_OF_ip_vs_conn_DOT_protocol.load())? & 0xff != IPPROTO_TCP {
        return None;
    }
    let flags: u32 = read(cp, OFFSET_OF_ip_vs_conn_DOT_flags.load())?;
    if flags & (IP_VS_CONN_F_TEMPLATE | IP_VS_CONN_F_ONE_PACKET) != 0 {
        return None;
    }
    let controlled: u32 = read(cp, OFFSET_OF_ip_vs_conn_DOT_n_control.load())?;
    let references: u32 = read(cp, OFFSET_OF_ip_vs_conn_DOT_refcnt.load())?;
    if controlled != 0 || references != 1 {
        return None;
    }
    let state: u16 = read(cp, OFFSET_OF_ip_vs_conn_DOT_state.load())?;
    if state == TIME_WAIT || state == CLOSE || state == LAST_ACK {
        return None;
    }
    // u16 up to 6.18, u8 from 7.2 on, followed by other fields.
    let af: u16 = if SIZE_OF_ip_vs_conn_DOT_af.load() == 1 {
        u16::from(read::<u8>(cp, OFFSET_OF_ip_vs_conn_DOT_af.load())?)
    } else {
        read(cp, OFFSET_OF_ip_vs_conn_DOT_af.load())?
    };
    let v6 = af == AF_INET6;
    let ipvs: u64 = read_or_zero(cp, OFFSET_OF_ip_vs_conn_DOT_ipvs.load());
    let net: u64 = read_or_zero(ipvs, OFFSET_OF_netns_ipvs_DOT_net.load());
    emit::<IpvsEnd>(KIND_IPVS_END, packet::netns_of_net(net), |out| {
        let client = address(cp, OFFSET_OF_ip_vs_conn_DOT_caddr.load(), v6);
        let client_port = u16::from_be(read_or_zero(cp, OFFSET_OF_ip_vs_conn_DOT_cport.load()));
        // SAFETY: `out` is the record's payload.
        unsafe {
            let virt = &raw mut (*out).virtual_flow;
            (*virt).src_addr = client;
            (*virt).src_port = client_port;
            (*virt).dst_addr = address(cp, OFFSET_OF_ip_vs_conn_DOT_vaddr.load(), v6);
            (*virt).dst_port =
                u16::from_be(read_or_zero(cp, OFFSET_OF_ip_vs_conn_DOT_vport.load()));
            let real = &raw mut (*out).real_flow;
            (*real).src_addr = client;
            (*real).src_port = client_port;
            (*real).dst_addr = address(cp, OFFSET_OF_ip_vs_conn_DOT_daddr.load(), v6);
            (*real).dst_port =
                u16::from_be(read_or_zero(cp, OFFSET_OF_ip_vs_conn_DOT_dport.load()));
            copy!(out.timeout_j, cp, OFFSET_OF_ip_vs_conn_DOT_timeout);
            copy!(out.expires_j, timer, OFFSET_OF_timer_list_DOT_expires);
            (*out).flags = flags;
            (*out).state = u32::from(state);
            (*out).forced = ip_vs_conn_expire_now::was_asked_for(cp);
            (*out).server_gone = server_gone(cp);
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
        }
    });
    Some(())
}
