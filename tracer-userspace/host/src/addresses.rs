//! Addresses of the interfaces of a network namespace, read by rtnetlink (`linux/if_addr.h`).

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use rsttrace_model::address::Address;
use tracer_common::net::{AF_INET, AF_INET6};

use super::{
    netlink::Link,
    nlmsg::{attributes, leading, malformed},
};

const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
/// The local address of a point-to-point link, where `IFA_ADDRESS` is the address of the other end.
const IFA_LOCAL: u16 = 2;
/// The interface name, followed by a colon and the alias if there is one; IPv4 only.
const IFA_LABEL: u16 = 3;
/// The address has no lifetime. One of the lowest eight flags, which `struct ifaddrmsg` holds.
const IFA_F_PERMANENT: u8 = 0x80;
/// Size of `struct ifaddrmsg`, bytes.
const IFADDRMSG_LEN: usize = 8;

const TIMEOUT: Duration = Duration::from_secs(1);

/// The addresses of the calling thread's namespace, sorted.
pub(super) fn read() -> io::Result<Vec<Address>> {
    let mut link = Link::open(None, Instant::now() + TIMEOUT)?;
    let mut addresses = Vec::new();
    link.dump(RTM_GETADDR, &[&[0; IFADDRMSG_LEN]], &mut |body| {
        addresses.extend(address(body)?);
        Ok(())
    })?;
    addresses.sort_unstable();
    Ok(addresses)
}

fn address(body: &[u8]) -> io::Result<Option<Address>> {
    let (fixed, rest) =
        body.split_at_checked(IFADDRMSG_LEN).ok_or_else(|| malformed("missing ifaddrmsg"))?;
    let ip = |payload: &[u8]| match fixed[0] {
        AF_INET => leading(payload).map(|bytes: [u8; 4]| Some(Ipv4Addr::from(bytes).into())),
        AF_INET6 => leading(payload).map(|bytes: [u8; 16]| Some(Ipv6Addr::from(bytes).into())),
        _ => Ok(None),
    };
    let (mut local, mut remote, mut interface) = (None, None, None);
    for attribute in attributes(rest) {
        match attribute? {
            (IFA_LOCAL, payload) => local = ip(payload)?,
            (IFA_ADDRESS, payload) => remote = ip(payload)?,
            (IFA_LABEL, payload) => {
                let label = String::from_utf8_lossy(payload);
                interface = label.split([':', '\0']).next().map(str::to_owned);
            }
            _ => {}
        }
    }
    Ok(local.or(remote).map(|ip| Address {
        ip,
        index: u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        interface,
        leased: fixed[2] & IFA_F_PERMANENT == 0,
        point_to_point: local.is_some() && remote.is_some() && local != remote,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::nlmsg::Attributes;
    use super::*;

    #[test]
    fn the_local_end_of_a_point_to_point_link_is_the_address() {
        let mut bytes = Attributes::default();
        bytes.put(IFA_ADDRESS, &[192, 0, 2, 2]);
        bytes.put(IFA_LOCAL, &[192, 0, 2, 1]);
        bytes.put(IFA_LABEL, b"ppp0:1\0");
        let body = |flags| [&[AF_INET, 32, flags, 0, 7, 0, 0, 0], bytes.bytes()].concat();
        let found = address(&body(IFA_F_PERMANENT)).expect("valid").expect("an address");
        let expected = Address {
            ip: [192, 0, 2, 1].into(),
            index: u32::from_ne_bytes([7, 0, 0, 0]),
            interface: Some("ppp0".into()),
            leased: false,
            point_to_point: true,
        };
        assert_eq!(found, expected);
        assert!(address(&body(0)).expect("valid").expect("an address").leased);
    }

    #[test]
    fn another_family_is_skipped_and_a_truncated_reply_is_an_error() {
        let mut bytes = Attributes::default();
        bytes.put(IFA_LOCAL, &[1, 2]);
        let body = |family| [&[family, 0, 0, 0, 0, 0, 0, 0], bytes.bytes()].concat();
        assert_eq!(address(&body(99)).expect("valid"), None);
        assert!(address(&body(AF_INET)).is_err());
        assert!(address(&[AF_INET; 7]).is_err());
    }
}
