//! Whether a network namespace has NAT chains: base chains of type "nat" in nftables
//! (`linux/netfilter/nf_tables.h`), or the `nat` table of iptables-legacy.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use rsttrace_model::netns::NatFamilies;
use rustix::net::netlink::NETFILTER;

use super::{
    firewall,
    netlink::Link,
    nlmsg::{attributes, malformed},
};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFPROTO_UNSPEC: u8 = 0;

/// Size of `struct nfgenmsg`, bytes.
const NFGENMSG_LEN: usize = 4;

const TIMEOUT: Duration = Duration::from_secs(1);

/// include/uapi/linux/netfilter.h.
const NFPROTO_INET: u8 = 1;
/// See [`NFPROTO_INET`].
const NFPROTO_IPV4: u8 = 2;
/// See [`NFPROTO_INET`].
const NFPROTO_IPV6: u8 = 10;

/// Reads the calling thread's network namespace; `None` when the chains cannot be read.
pub(super) fn read() -> Option<NatFamilies> {
    let legacy = |file| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}"))
            .is_ok_and(|names| names.lines().any(|name| name == "nat"))
    };
    let mut found = NatFamilies { v4: legacy("ip_tables_names"), v6: legacy("ip6_tables_names") };
    // A netlink request would load the module.
    if firewall::has_nf_tables() {
        add_chains(&mut found).ok()?;
    }
    Some(found)
}

fn add_chains(found: &mut NatFamilies) -> io::Result<()> {
    let mut link = Link::open(NETFILTER, Instant::now() + TIMEOUT)?;
    link.dump(GET_CHAIN, &[&[NFPROTO_UNSPEC, 0, 0, 0]], &mut |body| {
        let (Some(family), Some(chain)) = (body.first(), body.get(NFGENMSG_LEN..)) else {
            return Err(malformed("missing nfgenmsg"));
        };
        if is_nat(chain)? {
            found.v4 |= matches!(*family, NFPROTO_INET | NFPROTO_IPV4);
            found.v6 |= matches!(*family, NFPROTO_INET | NFPROTO_IPV6);
        }
        Ok(())
    })
}

fn is_nat(chain: &[u8]) -> io::Result<bool> {
    for attribute in attributes(chain) {
        let (kind, payload) = attribute?;
        if kind == NFTA_CHAIN_TYPE {
            return Ok(payload == b"nat\0");
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::super::nlmsg::Attributes;
    use super::*;

    #[test]
    fn only_base_chains_of_type_nat_translate() {
        let chain = |kind: Option<&[u8]>| {
            let mut bytes = Attributes::default();
            bytes.put(3, b"prerouting\0");
            if let Some(kind) = kind {
                bytes.put(NFTA_CHAIN_TYPE, kind);
            }
            is_nat(bytes.bytes()).expect("valid")
        };
        assert!(chain(Some(b"nat\0")));
        assert!(!chain(Some(b"filter\0")));
        assert!(!chain(None), "a chain that is not a base chain");
    }
}
