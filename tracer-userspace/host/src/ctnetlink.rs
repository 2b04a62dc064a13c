//! Reads one conntrack entry at a time by netlink `ctnetlink` (`linux/netfilter/nfnetlink_conntrack.h`).
//! A dump is never requested, because a dump deletes every expired entry; a request for one tuple deletes
//! at most the entry of that tuple.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use rsttrace_model::{conntrack::ConntrackEntry, flow::Flow};
use rustix::net::netlink::NETFILTER;
use tracer_common::net::{AF_INET, AF_INET6, IPPROTO_TCP};

use super::{
    netlink::Link,
    nlmsg::{Attributes, attributes, leading, malformed},
};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x0101;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

/// Size of `struct nfgenmsg`, bytes.
const NFGENMSG_LEN: usize = 4;

const TIMEOUT: Duration = Duration::from_secs(1);

/// The entries of the calling thread's namespace that have one of these tuples, as original or as reply
/// tuple, in the default zone. `None` where a request fails, or where `nf_conntrack_netlink` is not loaded:
/// a request would load the module, which makes every new connection slower because of its events.
pub(super) fn entries(tuples: &[Flow]) -> Option<Vec<ConntrackEntry>> {
    if !Path::new("/sys/module/nf_conntrack_netlink").exists() {
        return None;
    }
    let mut link = Link::open(NETFILTER, Instant::now() + TIMEOUT).ok()?;
    let mut entries = Vec::new();
    for tuple in tuples {
        let found = find(&mut link, *tuple).ok()?;
        entries.extend(found.filter(|entry| !entries.contains(entry)));
    }
    Some(entries)
}

fn find(link: &mut Link, tuple: Flow) -> io::Result<Option<ConntrackEntry>> {
    let family = if tuple.src.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = Attributes::default();
    request.put_nested(CTA_TUPLE_ORIG, &encode(tuple));
    let mut found = None;
    let result = link.request(GET, &[&[family, 0, 0, 0], request.bytes()], &mut |body| {
        let reply = body.get(NFGENMSG_LEN..).ok_or_else(|| malformed("missing nfgenmsg"))?;
        found = Some(entry(reply)?);
        Ok(())
    });
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(|()| found),
    }
}

fn encode(tuple: Flow) -> Attributes {
    let mut ip = Attributes::default();
    match (tuple.src.ip(), tuple.dst.ip()) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ip.put(CTA_IP_V6_SRC, &src.octets());
            ip.put(CTA_IP_V6_DST, &dst.octets());
        }
        (src, dst) => {
            for (kind, address) in [(CTA_IP_V4_SRC, src), (CTA_IP_V4_DST, dst)] {
                if let IpAddr::V4(address) = address {
                    ip.put(kind, &address.octets());
                }
            }
        }
    }
    let mut ports = Attributes::default();
    ports.put(CTA_PROTO_NUM, &[IPPROTO_TCP]);
    ports.put(CTA_PROTO_SRC_PORT, &tuple.src.port().to_be_bytes());
    ports.put(CTA_PROTO_DST_PORT, &tuple.dst.port().to_be_bytes());
    let mut both = Attributes::default();
    both.put_nested(CTA_TUPLE_IP, &ip);
    both.put_nested(CTA_TUPLE_PROTO, &ports);
    both
}

fn entry(bytes: &[u8]) -> io::Result<ConntrackEntry> {
    let (mut original, mut reply, mut state, mut left_s) = (None, None, None, None);
    for attribute in attributes(bytes) {
        let (kind, payload) = attribute?;
        match kind {
            CTA_TUPLE_ORIG => original = Some(decode(payload)?),
            CTA_TUPLE_REPLY => reply = Some(decode(payload)?),
            CTA_TIMEOUT => left_s = Some(u32::from_be_bytes(leading(payload)?)),
            CTA_PROTOINFO => state = tcp_state(payload)?,
            _ => {}
        }
    }
    match (original, reply) {
        (Some(original), Some(reply)) => Ok(ConntrackEntry { original, reply, state, left_s }),
        _ => Err(malformed("entry without tuples")),
    }
}

fn tcp_state(protoinfo: &[u8]) -> io::Result<Option<u8>> {
    for attribute in attributes(protoinfo) {
        if let (CTA_PROTOINFO_TCP, tcp) = attribute? {
            for attribute in attributes(tcp) {
                if let (CTA_PROTOINFO_TCP_STATE, payload) = attribute? {
                    return Ok(payload.first().copied());
                }
            }
        }
    }
    Ok(None)
}

fn decode(tuple: &[u8]) -> io::Result<Flow> {
    let (mut ips, mut ports) = ([None; 2], [None; 2]);
    for attribute in attributes(tuple) {
        let (kind, payload) = attribute?;
        for attribute in attributes(payload) {
            let (inner, value) = attribute?;
            match (kind, inner) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V4_DST) => {
                    let ip = Ipv4Addr::from(leading::<4>(value)?);
                    ips[usize::from(inner == CTA_IP_V4_DST)] = Some(IpAddr::V4(ip));
                }
                (CTA_TUPLE_IP, CTA_IP_V6_SRC | CTA_IP_V6_DST) => {
                    let ip = Ipv6Addr::from(leading::<16>(value)?);
                    ips[usize::from(inner == CTA_IP_V6_DST)] = Some(IpAddr::V6(ip));
                }
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT | CTA_PROTO_DST_PORT) => {
                    let port = u16::from_be_bytes(leading(value)?);
                    ports[usize::from(inner == CTA_PROTO_DST_PORT)] = Some(port);
                }
                _ => {}
            }
        }
    }
    let side = |index: usize| Some(SocketAddr::new(ips[index]?, ports[index]?));
    match (side(0), side(1)) {
        (Some(src), Some(dst)) => Ok(Flow { src, dst }),
        _ => Err(malformed("incomplete tuple")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(src: &str, dst: &str) -> Flow {
        let at = |text: &str| text.parse().expect("an address");
        Flow { src: at(src), dst: at(dst) }
    }

    #[test]
    fn a_tuple_survives_a_round_trip_in_both_families() {
        for tuple in [
            flow("10.0.0.2:41822", "10.96.0.10:3306"),
            flow("[fd00:1::2]:41822", "[fd00:64::1]:3306"),
        ] {
            assert_eq!(decode(encode(tuple).bytes()).expect("valid"), tuple);
        }
    }

    #[test]
    fn an_entry_has_both_tuples_its_state_and_its_remaining_time() {
        let original = flow("10.0.0.2:41822", "10.96.0.10:3306");
        let reply = flow("10.0.1.2:3306", "10.0.0.2:41822");
        let mut tcp = Attributes::default();
        tcp.put(CTA_PROTOINFO_TCP_STATE, &[3]);
        let mut info = Attributes::default();
        info.put_nested(CTA_PROTOINFO_TCP, &tcp);
        let mut bytes = Attributes::default();
        bytes.put_nested(CTA_TUPLE_ORIG, &encode(original));
        bytes.put_nested(CTA_TUPLE_REPLY, &encode(reply));
        assert_eq!(entry(bytes.bytes()).expect("valid").state, None);
        bytes.put_nested(CTA_PROTOINFO, &info);
        bytes.put(CTA_TIMEOUT, &77_u32.to_be_bytes());
        let expected = ConntrackEntry { original, reply, state: Some(3), left_s: Some(77) };
        assert_eq!(entry(bytes.bytes()).expect("valid"), expected);
    }

    #[test]
    fn an_incomplete_entry_is_an_error() {
        assert!(entry(&[]).is_err());
        assert!(decode(&[]).is_err());
        let tuple = encode(flow("10.0.0.2:1", "10.0.0.3:2"));
        for cut in 1..tuple.bytes().len() {
            assert!(decode(&tuple.bytes()[..cut]).is_err(), "{cut}");
        }
    }
}
