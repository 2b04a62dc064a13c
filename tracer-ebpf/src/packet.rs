//! Reads a TCP packet from a `struct sk_buff`: only this module reads packet headers.

use tracer_common::{net::IPPROTO_TCP, record::Packet};

use crate::kread::{facts, read, read_or_zero};

facts! {
    OFFSET_OF_sk_buff_DOT_head,
    OFFSET_OF_sk_buff_DOT_network_header,
    OFFSET_OF_sk_buff_DOT_transport_header,
    OFFSET_OF_sk_buff_DOT_dev,
    OFFSET_OF_sk_buff_DOT_sk,
    OFFSET_OF_sk_buff_DOT__skb_refdst,
    OFFSET_OF_dst_entry_DOT_dev,
    OFFSET_OF_net_device_DOT_nd_net_DOT_net,
    OFFSET_OF_net_DOT_ns_DOT_inum,
}

/// Low bit of `_skb_refdst`: SKB_DST_NOREF (include/linux/skbuff.h).
const REFDST_NOREF: u64 = 1;

/// `net.ns.inum` of a `struct net *`; 0 when unreadable.
#[inline(always)]
pub fn netns_of_net(net: u64) -> u32 {
    if net == 0 {
        return 0;
    }
    read_or_zero(net, OFFSET_OF_net_DOT_ns_DOT_inum.load())
}

/// The namespace of a packet: that of its device, or of its route while it has no device.
#[inline(always)]
pub fn netns(skb: u64) -> u32 {
    let mut dev: u64 = read_or_zero(skb, OFFSET_OF_sk_buff_DOT_dev.load());
    if dev == 0 {
        let dst: u64 = read_or_zero(skb, OFFSET_OF_sk_buff_DOT__skb_refdst.load());
        let dst = dst & !REFDST_NOREF;
        if dst == 0 {
            return 0;
        }
        dev = read_or_zero(dst, OFFSET_OF_dst_entry_DOT_dev.load());
        if dev == 0 {
            return 0;
        }
    }
    netns_of_net(read_or_zero(dev, OFFSET_OF_net_device_DOT_nd_net_DOT_net.load()))
}

/// Address of the packet's route; 0 without one.
#[inline(always)]
pub fn route(skb: u64) -> u64 {
    read_or_zero::<u64>(skb, OFFSET_OF_sk_buff_DOT__skb_refdst.load()) & !REFDST_NOREF
}

/// Address of the TCP header, and the length of header and payload according to the IP header.
struct Transport {
    at: u64,
    len: u32,
}

#[inline(always)]
unsafe fn ipv4(out: *mut Packet, ip: u64, version_ihl: u8) -> Option<Transport> {
    if read::<u8>(ip, 9)? != IPPROTO_TCP {
        return None;
    }
    let ihl = u32::from(version_ihl & 0xf) * 4;
    let total = u32::from(u16::from_be(read(ip, 2)?));
    let addresses: [[u8; 4]; 2] = read(ip, 12)?;
    // SAFETY: `out` is writable, per the caller.
    unsafe {
        (*out).ttl = read(ip, 8)?;
        let flow = &raw mut (*out).flow;
        (*flow).src_addr = mapped(addresses[0]);
        (*flow).dst_addr = mapped(addresses[1]);
    }
    Some(Transport { at: ip + u64::from(ihl), len: total.saturating_sub(ihl) })
}

#[inline(always)]
unsafe fn ipv6(out: *mut Packet, skb: u64, head: u64, ip: u64) -> Option<Transport> {
    const HEADER: u32 = 40;
    let len = u32::from(u16::from_be(read(ip, 4)?));
    let next: u8 = read(ip, 6)?;
    // SAFETY: `out` is writable, per the caller.
    unsafe {
        (*out).ttl = read(ip, 7)?;
        let flow = &raw mut (*out).flow;
        (*flow).src_addr = read(ip, 8)?;
        (*flow).dst_addr = read(ip, 24)?;
    }
    if next == IPPROTO_TCP {
        return Some(Transport { at: ip + u64::from(HEADER), len });
    }
    // With extension headers, the position of the TCP header is the one that the stack has set.
    let transport: u16 = read(skb, OFFSET_OF_sk_buff_DOT_transport_header.load())?;
    let at = head + u64::from(transport);
    if transport == u16::MAX || at <= ip {
        return None;
    }
    let options = (at - ip) as u32 - HEADER;
    Some(Transport { at, len: len.saturating_sub(options) })
}

/// `::ffff:a.b.c.d`.
#[inline(always)]
pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// Whether the packet may be TCP: its IP header says so, or is IPv6 with extension headers.
#[inline(always)]
pub fn may_be_tcp(skb: u64) -> Option<bool> {
    /// Extension headers (IANA protocol numbers): hop-by-hop, routing, fragment, destination options.
    const EXTENSIONS: [u8; 4] = [0, 43, 44, 60];
    let head: u64 = read(skb, OFFSET_OF_sk_buff_DOT_head.load())?;
    let network: u16 = read(skb, OFFSET_OF_sk_buff_DOT_network_header.load())?;
    let ip = head + u64::from(network);
    let version_ihl: u8 = read(ip, 0)?;
    Some(match version_ihl >> 4 {
        4 => read::<u8>(ip, 9)? == IPPROTO_TCP,
        6 => {
            let next: u8 = read(ip, 6)?;
            next == IPPROTO_TCP || EXTENSIONS.contains(&next)
        }
        _ => false,
    })
}

/// Whether a firewall rule's reset may answer the packet: neither a reset nor, in IPv4, a later fragment.
#[inline(always)]
pub fn may_be_reset(skb: u64) -> bool {
    is_answerable(skb) != Some(false)
}

#[inline(always)]
fn is_answerable(skb: u64) -> Option<bool> {
    const IP_OFFSET: u16 = 0x1fff;
    const RST: u8 = 4;
    let head: u64 = read(skb, OFFSET_OF_sk_buff_DOT_head.load())?;
    let network: u16 = read(skb, OFFSET_OF_sk_buff_DOT_network_header.load())?;
    let ip = head + u64::from(network);
    let version_ihl: u8 = read(ip, 0)?;
    let tcp = match version_ihl >> 4 {
        4 if u16::from_be(read(ip, 6)?) & IP_OFFSET != 0 => return Some(false),
        4 => ip + u64::from(version_ihl & 0xf) * 4,
        6 if read::<u8>(ip, 6)? == IPPROTO_TCP => ip + 40,
        _ => return None,
    };
    Some(read::<u8>(tcp, 13)? & RST == 0)
}

/// Fills `out` from the packet. `out.present` stays 0 when the packet is not TCP or cannot be read.
///
/// # Safety
/// `out` must be writable.
#[inline(always)]
pub unsafe fn fill(out: *mut Packet, skb: u64) -> Option<()> {
    let head: u64 = read(skb, OFFSET_OF_sk_buff_DOT_head.load())?;
    let network: u16 = read(skb, OFFSET_OF_sk_buff_DOT_network_header.load())?;
    let ip = head + u64::from(network);
    let version_ihl: u8 = read(ip, 0)?;
    // SAFETY: `out` is writable, per the contract.
    unsafe {
        let transport = match version_ihl >> 4 {
            4 => ipv4(out, ip, version_ihl)?,
            6 => ipv6(out, skb, head, ip)?,
            _ => return None,
        };
        let ports: [u16; 2] = read(transport.at, 0)?;
        let flow = &raw mut (*out).flow;
        (*flow).src_port = u16::from_be(ports[0]);
        (*flow).dst_port = u16::from_be(ports[1]);
        (*out).seq = u32::from_be(read(transport.at, 4)?);
        (*out).ack = u32::from_be(read(transport.at, 8)?);
        let offset_flags: [u8; 2] = read(transport.at, 12)?;
        let header = u32::from(offset_flags[0] >> 4) * 4;
        (*out).flags = offset_flags[1];
        (*out).payload = transport.len.saturating_sub(header);
        (*out).present = 1;
    }
    Some(())
}
