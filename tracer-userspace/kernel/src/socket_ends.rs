//! The recorded ends of sockets, read from the `SOCKET_ENDS` map of the programs.

use std::{cmp::Reverse, sync::Arc};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use rsttrace_core::{decode::ended_socket, event::SocketEnd};
use rsttrace_model::flow::Flow;
use tracer_common::record;

use super::flow_key::FlowKey;

/// The value, as plain bytes of the map.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Value([u8; size_of::<record::SocketEnd>()]);
// SAFETY: an array of bytes.
unsafe impl aya::Pod for Value {}

/// The map.
#[derive(Clone)]
pub struct SocketEnds {
    map: Arc<HashMap<MapData, FlowKey, Value>>,
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
        let wanted = |key: &FlowKey| {
            (key.is_from(packet.dst) && key.netns() == Some(netns)) || key.is_to(packet.src)
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
