//! Addresses of the interfaces of a namespace: rtnetlink (`linux/if_addr.h`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::netlink::Link;
use super::nlmsg::{attributes, leading, malformed};

const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
/// Of a point-to-point link, where `IFA_ADDRESS` is the other end's.
const IFA_LOCAL: u16 = 2;
/// `struct ifaddrmsg`, bytes.
const IFADDRMSG_LEN: usize = 8;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const PATIENCE: Duration = Duration::from_secs(1);

/// Those of the calling thread's namespace, sorted.
pub(super) fn read() -> io::Result<Vec<IpAddr>> {
    let mut link = Link::open(None, Instant::now() + PATIENCE)?;
    let mut addresses = Vec::new();
    link.dump(RTM_GETADDR, &[&[0; IFADDRMSG_LEN]], &mut |body| {
        addresses.extend(address(body)?);
        Ok(())
    })?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn address(body: &[u8]) -> io::Result<Option<IpAddr>> {
    let (fixed, rest) =
        body.split_at_checked(IFADDRMSG_LEN).ok_or_else(|| malformed("no ifaddrmsg"))?;
    let ip = |payload: &[u8]| match fixed[0] {
        AF_INET => leading(payload).map(|bytes: [u8; 4]| Some(Ipv4Addr::from(bytes).into())),
        AF_INET6 => leading(payload).map(|bytes: [u8; 16]| Some(Ipv6Addr::from(bytes).into())),
        _ => Ok(None),
    };
    let mut found = None;
    for attribute in attributes(rest) {
        match attribute? {
            (IFA_LOCAL, payload) => return ip(payload),
            (IFA_ADDRESS, payload) => found = ip(payload)?,
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::nlmsg::Attributes;
    use super::*;

    #[test]
    fn the_own_end_of_a_point_to_point_link_is_the_address() {
        let mut bytes = Attributes::default();
        bytes.put(IFA_ADDRESS, &[192, 0, 2, 2]);
        bytes.put(IFA_LOCAL, &[192, 0, 2, 1]);
        let body = [&[AF_INET, 32, 0, 0, 0, 0, 0, 0], bytes.bytes()].concat();
        assert_eq!(address(&body).expect("valid"), Some([192, 0, 2, 1].into()));
    }

    #[test]
    fn another_family_is_passed_over_and_a_cut_answer_is_an_error() {
        let mut bytes = Attributes::default();
        bytes.put(IFA_LOCAL, &[1, 2]);
        let body = |family| [&[family, 0, 0, 0, 0, 0, 0, 0], bytes.bytes()].concat();
        assert_eq!(address(&body(99)).expect("valid"), None);
        assert!(address(&body(AF_INET)).is_err());
        assert!(address(&[AF_INET; 7]).is_err());
    }
}
