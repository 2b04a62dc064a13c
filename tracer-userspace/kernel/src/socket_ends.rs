//! The recorded ends of sockets, read from the `SOCKET_ENDS` map of the programs.

use std::{
    cmp::Reverse,
    mem::offset_of,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use rsttrace_core::{decode::ended_socket, event::SocketEnd};
use rsttrace_model::flow::Flow;
use tracer_common::record;

/// The key and the value, as plain bytes of the map.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Key([u8; size_of::<record::Flow>()]);
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Value([u8; size_of::<record::SocketEnd>()]);
// SAFETY: arrays of bytes.
unsafe impl aya::Pod for Key {}
// SAFETY: arrays of bytes.
unsafe impl aya::Pod for Value {}

/// The map.
#[derive(Clone)]
pub struct SocketEnds {
    map: Arc<HashMap<MapData, Key, Value>>,
    hz: u64,
}

impl SocketEnds {
    /// # Errors
    /// When the map has another type.
    pub fn new(map: Map, hz: u64) -> Result<Self> {
        let map = HashMap::try_from(map).context("SOCKET_ENDS is not a hash map")?;
        Ok(Self { map: Arc::new(map), hz })
    }

    /// The ends of sockets at both ends of a packet that was answered in `netns`, newest first, each with its namespace.
    /// Walks the keys of the whole map (a system call each, at most 16384) and reads only the values that are wanted:
    /// while a value is read, the kernel runs no kprobe program on that CPU.
    pub fn of(&self, netns: u32, packet: Flow) -> Vec<(u32, Flow, SocketEnd)> {
        /// An address has more ends than this only if its port is used again and again.
        const MOST: usize = 32;
        let wanted = |key: &Key| {
            (has(key, offset_of!(record::Flow, src_addr), packet.dst) && key.netns() == Some(netns))
                || has(key, offset_of!(record::Flow, dst_addr), packet.src)
        };
        let mut found = Vec::new();
        for key in self.map.keys().filter_map(Result::ok).filter(wanted) {
            // An end that is gone by now counts as never recorded.
            let Ok(value) = self.map.get(&key, 0) else { continue };
            if let (Some(netns), Ok(Some((flow, end)))) =
                (key.netns(), ended_socket(&key.0, &value.0, self.hz))
            {
                found.push((netns, flow, end));
            }
        }
        found.sort_by_key(|(_, _, end)| Reverse(end.ts));
        found.truncate(MOST);
        found
    }
}

impl Key {
    fn netns(&self) -> Option<u32> {
        let at = offset_of!(record::Flow, pad);
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }
}

/// Whether the address at this offset of a key, and the port that belongs to it, are these.
fn has(key: &Key, at: usize, address: SocketAddr) -> bool {
    let port_at = match at == offset_of!(record::Flow, src_addr) {
        true => offset_of!(record::Flow, src_port),
        false => offset_of!(record::Flow, dst_port),
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    key.0.get(at..at + 16) == Some(ip.octets().as_slice())
        && key.0.get(port_at..port_at + 2) == Some(address.port().to_ne_bytes().as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_key_are_compared_in_both_families() {
        let mut key = Key([0; size_of::<record::Flow>()]);
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets();
        for (address, port) in [
            (offset_of!(record::Flow, src_addr), offset_of!(record::Flow, src_port)),
            (offset_of!(record::Flow, dst_addr), offset_of!(record::Flow, dst_port)),
        ] {
            let has = |key: &Key, text: &str| has(key, address, text.parse().expect("an address"));
            assert!(!has(&key, "10.0.0.2:41822"));
            key.0[address..address + 16].copy_from_slice(&mapped);
            key.0[port..port + 2].copy_from_slice(&41822_u16.to_ne_bytes());
            assert!(has(&key, "10.0.0.2:41822"));
            assert!(!has(&key, "10.0.0.2:41823"));
            assert!(!has(&key, "10.0.0.3:41822"));
            assert!(!has(&key, "[fd00::2]:41822"));
        }
    }
}
