//! Whether a network namespace has NAT chains: base chains of type "nat" in nftables
//! (`linux/netfilter/nf_tables.h`), or the `nat` table of iptables-legacy.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::netlink::NETFILTER;

use super::{
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

/// Reads the calling thread's network namespace; `None` when the chains cannot be read.
pub(super) fn read() -> Option<bool> {
    let legacy = ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}"))
            .is_ok_and(|names| names.lines().any(|name| name == "nat"))
    });
    if legacy {
        return Some(true);
    }
    // A netlink request would load the module.
    if !Path::new("/sys/module/nf_tables").exists() {
        return Some(false);
    }
    nft().ok()
}

fn nft() -> io::Result<bool> {
    let mut link = Link::open(NETFILTER, Instant::now() + TIMEOUT)?;
    let mut translates = false;
    link.dump(GET_CHAIN, &[&[NFPROTO_UNSPEC, 0, 0, 0]], &mut |body| {
        translates |=
            is_nat(body.get(NFGENMSG_LEN..).ok_or_else(|| malformed("missing nfgenmsg"))?)?;
        Ok(())
    })?;
    Ok(translates)
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
