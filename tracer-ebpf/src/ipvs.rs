//! Code that the IPVS hooks share: entries, services that lost a real server, and the record of an entry's
//! end.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, LruHashMap},
};
use tracer_common::{
    net::{AF_INET6, IPPROTO_TCP},
    record::{Flow, IpvsEnd},
    wire::{ABSENT, KIND_IPVS_END},
};

use crate::{
    emit::emit,
    kread::{copy, facts, read, read_or_zero},
    packet, task,
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
    OFFSET_OF_ip_vs_conn_DOT_in_pkts,
    OFFSET_OF_ip_vs_conn_DOT_ipvs,
    OFFSET_OF_ip_vs_conn_DOT_dest,
    OFFSET_OF_ip_vs_dest_DOT_flags,
    OFFSET_OF_ip_vs_dest_DOT_cflags,
    OFFSET_OF_netns_ipvs_DOT_net,
    OFFSET_OF_netns_ipvs_DOT_sysctl_expire_nodest_conn,
    OFFSET_OF_timer_list_DOT_expires,
}

/// include/uapi/linux/ip_vs.h
const IP_VS_CONN_F_TEMPLATE: u32 = 0x1000;
const IP_VS_CONN_F_ONE_PACKET: u32 = 0x2000;
/// include/net/ip_vs.h
const IP_VS_DEST_F_AVAILABLE: u32 = 1;
/// include/net/ip_vs.h, IP_VS_TCP_S_*
const TIME_WAIT: u16 = 5;
const CLOSE: u16 = 6;
const LAST_ACK: u16 = 8;

/// The namespace of a `struct netns_ipvs`.
#[inline(always)]
pub fn netns(table: u64) -> u32 {
    packet::netns_of_net(read_or_zero(table, OFFSET_OF_netns_ipvs_DOT_net.load()))
}

/// An address of an IPVS struct (`union nf_inet_addr`), as 16 bytes.
#[inline(always)]
pub fn address(base: u64, offset: u32, v6: bool) -> [u8; 16] {
    if v6 { read_or_zero(base, offset) } else { packet::mapped(read_or_zero(base, offset)) }
}

/// Maps the address of an entry to the time of the request. The timer fires within a jiffy or two, long
/// before the address can belong to another entry.
#[map]
static EXPIRE_NOW: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1024, 0);

/// A timer that was set to expire now fires at the next tick. One second allows for a stalled CPU.
const FRESH_NS: u64 = 1_000_000_000;

/// Stores that IPVS requested the end of an entry.
#[inline(always)]
pub fn request_end(cp: u64) {
    let now = unsafe { bpf_ktime_get_ns() };
    // A full map evicts its oldest entry, which is harmless.
    let _ = EXPIRE_NOW.insert(&cp, &now, 0);
}

/// 1 when the end of the entry was requested within the last second.
#[inline(always)]
fn end_was_requested(cp: u64) -> u32 {
    // SAFETY: a stale value is another number, not another type.
    match unsafe { EXPIRE_NOW.get(&cp) } {
        Some(requested) => u32::from(unsafe { bpf_ktime_get_ns() } - *requested < FRESH_NS),
        None => 0,
    }
}

/// A virtual service.
#[repr(C)]
#[derive(Clone, Copy)]
struct Service {
    address: [u8; 16],
    netns: u32,
    /// Host order. 32 bits, so that the struct has no padding.
    port: u32,
}

/// Services that have lost a real server. The value is unused.
#[map]
static SERVICES_WITHOUT_SERVER: LruHashMap<Service, u32> = LruHashMap::with_max_entries(4096, 0);

/// Time (`bpf_ktime_get_ns`) until which dropped packets are checked; 0 for never.
#[map]
static DROPS_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// The timers of entries without a server are not refreshed, so these entries end with their timeout, by
/// default after 900 s.
const DROPS_FOR_NS: u64 = 3600 * 1_000_000_000;

/// Whether IPVS may be dropping packets because their server was removed.
#[inline(always)]
pub fn may_drop() -> bool {
    match DROPS_UNTIL.get(0) {
        Some(until) => *until != 0 && unsafe { bpf_ktime_get_ns() } < *until,
        None => false,
    }
}

/// Whether the receiver of a packet is a service that has lost a real server.
#[inline(always)]
pub fn lost_a_server(flow: &Flow, netns: u32) -> bool {
    let service = Service { address: flow.dst_addr, netns, port: u32::from(flow.dst_port) };
    // SAFETY: the value is not read.
    unsafe { SERVICES_WITHOUT_SERVER.get(&service) }.is_some()
}

/// Stores a service that lost a real server, unless `vs/expire_nodest_conn` makes IPVS reset its connections.
#[inline(always)]
pub fn server_removed(table: u64, netns: u32, service: &Flow) {
    let expire: u32 =
        read_or_zero(table, OFFSET_OF_netns_ipvs_DOT_sysctl_expire_nodest_conn.load());
    if expire != 0 {
        return;
    }
    let service = Service { address: service.src_addr, netns, port: u32::from(service.src_port) };
    // A full map evicts the service that lost a server longest ago, which is harmless.
    let _ = SERVICES_WITHOUT_SERVER.insert(&service, &0, 0);
    if let Some(until) = DROPS_UNTIL.get_ptr_mut(0) {
        // SAFETY: one word of the map, and the last write is the right one.
        unsafe { *until = bpf_ktime_get_ns() + DROPS_FOR_NS };
    }
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

/// Emits an [`IpvsEnd`] for the entry of this timer, unless the entry ends in order or does not end.
#[inline(always)]
pub fn entry_ended(ctx: &impl EbpfContext, timer: u64) -> Option<()> {
    let offset = OFFSET_OF_ip_vs_conn_DOT_timer.load();
    if offset == ABSENT {
        return None;
    }
    let cp = timer - u64::from(offset);
    if read::<u16>(cp, OFFSET_OF_ip_vs_conn_DOT_protocol.load())? & 0xff != u16::from(IPPROTO_TCP) {
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
    let v6 = af == u16::from(AF_INET6);
    let table: u64 = read_or_zero(cp, OFFSET_OF_ip_vs_conn_DOT_ipvs.load());
    emit::<IpvsEnd>(KIND_IPVS_END, netns(table), |out| {
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
            (*out).forced = end_was_requested(cp);
            (*out).server_gone = server_gone(cp);
            (*out).packets = read(cp, OFFSET_OF_ip_vs_conn_DOT_in_pkts.load()).unwrap_or(ABSENT);
            task::fill(&raw mut (*out).task);
            task::fill_stack(ctx, &raw mut (*out).stack);
        }
    });
    Some(())
}
