//! A flow as a key of the programs' maps.

use std::{mem::offset_of, net::IpAddr};

use rsttrace_model::flow::Flow;
use tracer_common::record;

/// The bytes of a [`record::Flow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct FlowKey(pub [u8; size_of::<record::Flow>()]);
// SAFETY: an array of bytes.
unsafe impl aya::Pod for FlowKey {}

impl FlowKey {
    /// With 0 as the namespace.
    pub fn new(flow: Flow) -> Self {
        let mut bytes = [0; size_of::<record::Flow>()];
        let addresses = [
            (flow.src, offset_of!(record::Flow, src_addr), offset_of!(record::Flow, src_port)),
            (flow.dst, offset_of!(record::Flow, dst_addr), offset_of!(record::Flow, dst_port)),
        ];
        for (address, at, port_at) in addresses {
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes[at..at + 16].copy_from_slice(&ip.octets());
            bytes[port_at..port_at + 2].copy_from_slice(&address.port().to_ne_bytes());
        }
        Self(bytes)
    }

    /// The namespace that some maps keep in the padding.
    pub fn netns(&self) -> Option<u32> {
        let at = offset_of!(record::Flow, pad);
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    pub fn words(&self) -> [u64; size_of::<record::Flow>() / 8] {
        std::array::from_fn(|word| {
            let bytes: [u8; 8] = std::array::from_fn(|byte| self.0[word * 8 + byte]);
            u64::from_ne_bytes(bytes)
        })
    }

    /// Whether this is the key's source, or with `dst` its destination.
    fn has(&self, address: std::net::SocketAddr, dst: bool) -> bool {
        let one = Self::new(Flow { src: address, dst: address });
        let (ip, port) = match dst {
            false => (offset_of!(record::Flow, src_addr), offset_of!(record::Flow, src_port)),
            true => (offset_of!(record::Flow, dst_addr), offset_of!(record::Flow, dst_port)),
        };
        let same = |at: usize, len: usize| self.0.get(at..at + len) == one.0.get(at..at + len);
        same(ip, 16) && same(port, 2)
    }

    pub fn is_from(&self, address: std::net::SocketAddr) -> bool {
        self.has(address, false)
    }

    pub fn is_to(&self, address: std::net::SocketAddr) -> bool {
        self.has(address, true)
    }
}

#[cfg(test)]
mod tests {
    use rsttrace_model::testing::{address, flow};

    use super::*;

    #[test]
    fn both_addresses_of_a_key_are_compared_in_both_families() {
        for (src, dst) in [("10.0.0.2:41822", "10.0.0.3:80"), ("[fd00::2]:41822", "[fd00::3]:80")] {
            let key = FlowKey::new(flow(src, dst));
            assert!(key.is_from(address(src)) && key.is_to(address(dst)));
            for other in ["10.0.0.2:41823", "10.0.0.9:41822", "[fd00::2]:41823", "[fd00::9]:80"] {
                assert!(!key.is_from(address(other)) && !key.is_to(address(other)), "{other}");
            }
            assert_eq!(key.netns(), Some(0));
        }
    }

    #[test]
    fn the_words_of_a_key_are_its_bytes() {
        let key = FlowKey::new(flow("10.0.0.2:41822", "10.0.0.3:80"));
        let bytes: Vec<u8> = key.words().into_iter().flat_map(u64::to_ne_bytes).collect();
        assert_eq!(bytes, key.0);
    }
}
