//! IPVS timeouts, sysctls and services: generic netlink family "IPVS" (`linux/ip_vs.h`,
//! `net/netfilter/ipvs/ip_vs_ctl.c`) and `/proc/sys/net/ipv4/vs`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use rsttrace_model::{
    ipvs::{IpvsDestination, IpvsService, IpvsState},
    settings::IpvsTimer,
    traffic::ServiceKey,
};
use tracer_common::net;

use super::{
    ipvs_conn, ipvs_services,
    netlink::Family,
    nlmsg::{Attributes, attributes, leading, malformed, u16_of, u32_of},
    sysctl::{flag, value},
};

const IPVS_GENL_VERSION: u8 = 1;

const IPVS_CMD_GET_SERVICE: u8 = 4;
const IPVS_CMD_GET_DEST: u8 = 8;
const IPVS_CMD_SET_CONFIG: u8 = 12;
const IPVS_CMD_GET_CONFIG: u8 = 13;

const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;
const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;

const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_FWMARK: u16 = 5;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_STATS: u16 = 10;

const IPVS_STATS_ATTR_CONNS: u16 = 1;

const IPVS_DEST_ATTR_ADDR: u16 = 1;
const IPVS_DEST_ATTR_PORT: u16 = 2;
const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
const IPVS_DEST_ATTR_ADDR_FAMILY: u16 = 11;

// An IPVS attribute holds the family in 16 bits.
const AF_INET: u16 = net::AF_INET as u16;
const AF_INET6: u16 = net::AF_INET6 as u16;

/// Time for all requests: a node has thousands of services, and each costs one dump. After this time the
/// services are unknown.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Reads the calling thread's network namespace; `None` while ip_vs is not loaded.
pub(super) fn read() -> Option<IpvsState> {
    if !is_loaded() {
        return None;
    }
    let mut state = IpvsState {
        expire_nodest_conn: flag("ipv4/vs/expire_nodest_conn"),
        conntrack: flag("ipv4/vs/conntrack"),
        sloppy_tcp: flag("ipv4/vs/sloppy_tcp"),
        conn_reuse_mode: value("ipv4/vs/conn_reuse_mode"),
        drop_entry: value("ipv4/vs/drop_entry"),
        secure_tcp: value("ipv4/vs/secure_tcp"),
        conn_max: value("ipv4/vs/conn_max"),
        conns: ipvs_conn::count(),
        ..IpvsState::default()
    };
    if let Ok(mut ipvs) = Family::connect("IPVS", IPVS_GENL_VERSION, Instant::now() + TIMEOUT) {
        // The two requests are independent: one may fail and the other succeed.
        let _ = read_timeouts(&mut ipvs, &mut state);
        state.services = read_services(&mut ipvs).ok();
    }
    if state.services.is_none() {
        // Netlink requires CAP_NET_ADMIN; the file does not.
        let text = fs::read_to_string("/proc/thread-self/net/ip_vs");
        state.services = text.ok().map(|text| ipvs_services::parse(&text));
    }
    Some(state)
}

/// Reads the timeouts only, because the table of services may be long.
pub(super) fn timeouts() -> Option<IpvsState> {
    if !is_loaded() {
        return None;
    }
    let mut state = IpvsState::default();
    if let Ok(mut ipvs) = Family::connect("IPVS", IPVS_GENL_VERSION, Instant::now() + TIMEOUT) {
        let _ = read_timeouts(&mut ipvs, &mut state);
    }
    Some(state)
}

/// Those of the addresses that are TCP services of the calling thread's namespace.
pub(super) fn services_at(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let text = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    let services = ipvs_services::parse(&text);
    let is_one = |at: &SocketAddr| services.iter().any(|it| it.is_tcp_at(*at));
    addresses.filter(is_one).collect()
}

/// Reads one timeout, in seconds.
///
/// # Errors
/// `NotFound` while ip_vs is not loaded, or the kernel's error.
pub(super) fn timeout(timer: IpvsTimer) -> io::Result<u32> {
    let mut state = IpvsState::default();
    read_timeouts(&mut loaded()?, &mut state)?;
    let seconds = match timer {
        IpvsTimer::Tcp => state.timeout_tcp_s,
        IpvsTimer::TcpFin => state.timeout_tcpfin_s,
        IpvsTimer::Udp => state.timeout_udp_s,
    };
    seconds.ok_or_else(|| ErrorKind::NotFound.into())
}

/// Sets one timeout and leaves the others unchanged: `ip_vs_genl_set_config` reads a missing attribute as 0,
/// and `ip_vs_set_timeout` does not change a timeout for 0.
///
/// # Errors
/// `NotFound` while ip_vs is not loaded, or the kernel's error: `EINVAL` above `INT_MAX / HZ`.
pub(super) fn set_timeout(timer: IpvsTimer, seconds: u32) -> io::Result<()> {
    let attribute = match timer {
        IpvsTimer::Tcp => IPVS_CMD_ATTR_TIMEOUT_TCP,
        IpvsTimer::TcpFin => IPVS_CMD_ATTR_TIMEOUT_TCP_FIN,
        IpvsTimer::Udp => IPVS_CMD_ATTR_TIMEOUT_UDP,
    };
    let mut request = Attributes::default();
    request.put(attribute, &seconds.to_ne_bytes());
    loaded()?.request(IPVS_CMD_SET_CONFIG, &request, &mut |_| Ok(()))
}

/// The number of connections that each service has scheduled since the service was added or its counters
/// were zeroed, as 32-bit counters. `None` while ip_vs is not loaded, or without permission.
pub(super) fn scheduled() -> Option<BTreeMap<ServiceKey, u32>> {
    let mut counts = BTreeMap::new();
    let result = loaded().ok()?.dump(IPVS_CMD_GET_SERVICE, &Attributes::default(), &mut |reply| {
        let bytes = nested(reply, IPVS_CMD_ATTR_SERVICE)?;
        let IpvsService { ip, port, fwmark, protocol, .. } = service(bytes)?;
        let stats = nested(bytes, IPVS_SVC_ATTR_STATS)?;
        let conns = u32_of(nested(stats, IPVS_STATS_ATTR_CONNS)?)?;
        counts.insert(ServiceKey { protocol, ip, port, fwmark }, conns);
        Ok(())
    });
    result.ok().map(|()| counts)
}

/// The netlink family. Does not make the kernel load ip_vs.
fn loaded() -> io::Result<Family> {
    if !is_loaded() {
        return Err(io::Error::new(ErrorKind::NotFound, "ip_vs is not loaded"));
    }
    Family::connect("IPVS", IPVS_GENL_VERSION, Instant::now() + TIMEOUT)
}

/// Whether ip_vs is loaded. Checks the proc file, because a netlink request for an unknown family would make
/// the kernel load ip_vs.
fn is_loaded() -> bool {
    Path::new("/proc/thread-self/net/ip_vs").exists()
}

fn read_timeouts(ipvs: &mut Family, state: &mut IpvsState) -> io::Result<()> {
    ipvs.request(IPVS_CMD_GET_CONFIG, &Attributes::default(), &mut |reply| {
        parse_timeouts(reply, state)
    })
}

fn parse_timeouts(reply: &[u8], state: &mut IpvsState) -> io::Result<()> {
    for attribute in attributes(reply) {
        let (kind, payload) = attribute?;
        let timeout = match kind {
            IPVS_CMD_ATTR_TIMEOUT_TCP => &mut state.timeout_tcp_s,
            IPVS_CMD_ATTR_TIMEOUT_TCP_FIN => &mut state.timeout_tcpfin_s,
            IPVS_CMD_ATTR_TIMEOUT_UDP => &mut state.timeout_udp_s,
            _ => continue,
        };
        *timeout = Some(u32_of(payload)?);
    }
    Ok(())
}

fn read_services(ipvs: &mut Family) -> io::Result<Vec<IpvsService>> {
    let mut services = Vec::new();
    ipvs.dump(IPVS_CMD_GET_SERVICE, &Attributes::default(), &mut |reply| {
        services.push(service(nested(reply, IPVS_CMD_ATTR_SERVICE)?)?);
        Ok(())
    })?;
    for service in &mut services {
        let mut request = Attributes::default();
        request.put_nested(IPVS_CMD_ATTR_SERVICE, &service_key(service));
        let family = family_of(service.ip);
        let destinations = &mut service.destinations;
        ipvs.dump(IPVS_CMD_GET_DEST, &request, &mut |reply| {
            destinations.push(destination(nested(reply, IPVS_CMD_ATTR_DEST)?, family)?);
            Ok(())
        })?;
        destinations.sort_unstable_by_key(|d| (d.ip, d.port));
    }
    // The kernel lists services in the order of its hash table, which differs from boot to boot.
    services.sort_unstable_by_key(|s| (s.ip, s.port, s.protocol, s.fwmark));
    Ok(services)
}

/// The attributes by which the kernel finds a service (`ip_vs_genl_parse_service`).
fn service_key(service: &IpvsService) -> Attributes {
    let mut key = Attributes::default();
    key.put(IPVS_SVC_ATTR_AF, &family_of(service.ip).to_ne_bytes());
    if service.fwmark != 0 {
        key.put(IPVS_SVC_ATTR_FWMARK, &service.fwmark.to_ne_bytes());
    } else {
        key.put(IPVS_SVC_ATTR_PROTOCOL, &u16::from(service.protocol).to_ne_bytes());
        key.put(IPVS_SVC_ATTR_ADDR, &union_bytes(service.ip));
        key.put(IPVS_SVC_ATTR_PORT, &service.port.to_be_bytes());
    }
    key
}

fn service(bytes: &[u8]) -> io::Result<IpvsService> {
    let (mut family, mut address) = (None, None);
    let (mut port, mut fwmark, mut protocol, mut scheduler) = (0, 0, 0, String::new());
    for attribute in attributes(bytes) {
        let (kind, payload) = attribute?;
        match kind {
            IPVS_SVC_ATTR_AF => family = Some(u16_of(payload)?),
            IPVS_SVC_ATTR_PROTOCOL => protocol = protocol_of(u16_of(payload)?)?,
            IPVS_SVC_ATTR_ADDR => address = Some(payload),
            IPVS_SVC_ATTR_PORT => port = u16::from_be_bytes(leading(payload)?),
            IPVS_SVC_ATTR_FWMARK => fwmark = u32_of(payload)?,
            IPVS_SVC_ATTR_SCHED_NAME => scheduler = name(payload),
            _ => {}
        }
    }
    let family = family.ok_or_else(|| malformed("service without family"))?;
    // A firewall-mark service has a family but no address.
    let ip = ip_of(family, address.unwrap_or(&[0; 16]))?;
    Ok(IpvsService { ip, port, fwmark, protocol, scheduler, destinations: Vec::new() })
}

/// Parses a destination. `family` is the service's; a tunnelled destination may have another, which the
/// kernel sends with the destination.
fn destination(bytes: &[u8], mut family: u16) -> io::Result<IpvsDestination> {
    let (mut address, mut port, mut weight, mut forward) = (None, 0, 0, 0);
    for attribute in attributes(bytes) {
        let (kind, payload) = attribute?;
        match kind {
            IPVS_DEST_ATTR_ADDR => address = Some(payload),
            IPVS_DEST_ATTR_PORT => port = u16::from_be_bytes(leading(payload)?),
            IPVS_DEST_ATTR_FWD_METHOD => forward = u32_of(payload)?,
            IPVS_DEST_ATTR_WEIGHT => weight = u32_of(payload)?,
            IPVS_DEST_ATTR_ADDR_FAMILY => family = u16_of(payload)?,
            _ => {}
        }
    }
    let address = address.ok_or_else(|| malformed("destination without address"))?;
    Ok(IpvsDestination { ip: ip_of(family, address)?, port, weight, forward })
}

fn nested(reply: &[u8], wanted: u16) -> io::Result<&[u8]> {
    for attribute in attributes(reply) {
        let (kind, payload) = attribute?;
        if kind == wanted {
            return Ok(payload);
        }
    }
    Err(malformed("missing nested attribute"))
}

/// Parses `union nf_inet_addr`: 16 bytes, of which IPv4 uses the first four.
fn ip_of(family: u16, address: &[u8]) -> io::Result<IpAddr> {
    match family {
        AF_INET => Ok(Ipv4Addr::from(leading::<4>(address)?).into()),
        AF_INET6 => Ok(Ipv6Addr::from(leading::<16>(address)?).into()),
        _ => Err(malformed("address family")),
    }
}

fn union_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn family_of(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn protocol_of(number: u16) -> io::Result<u8> {
    u8::try_from(number).map_err(|_| malformed("protocol"))
}

/// A name without the terminating zero that netlink strings have.
fn name(payload: &[u8]) -> String {
    let end = payload.iter().position(|&b| b == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

#[cfg(test)]
#[path = "ipvs_tests.rs"]
mod tests;
