//! IPVS services, read from `/proc/net/ip_vs` (`net/netfilter/ipvs/ip_vs_ctl.c`, `ip_vs_info_seq_show`),
//! which every process may read. Netlink requires CAP_NET_ADMIN.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rsttrace_model::ipvs::{IpvsDestination, IpvsService};
use tracer_common::net::{IPPROTO_TCP, IPPROTO_UDP};

use super::ipvs_conn;

const IPPROTO_SCTP: u8 = 132;

/// The services in the text of `/proc/net/ip_vs`. Lines that cannot be parsed are skipped.
pub(super) fn parse(text: &str) -> Vec<IpvsService> {
    let mut services: Vec<IpvsService> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("->") => {
                if let (Some(service), Some(server)) = (services.last_mut(), destination(words)) {
                    service.destinations.push(server);
                }
            }
            Some(kind) => services.extend(service(kind, words)),
            None => {}
        }
    }
    for service in &mut services {
        service.destinations.sort_unstable_by_key(|server| (server.ip, server.port));
    }
    services.sort_unstable_by_key(|it| (it.ip, it.port, it.protocol, it.fwmark));
    services
}

/// Parses `TCP  0A600001:0CEA rr persistent 360 FFFFFFFF` or `FWM  00000005 rr`.
fn service<'a>(kind: &str, mut words: impl Iterator<Item = &'a str>) -> Option<IpvsService> {
    let protocol = match kind {
        "TCP" => IPPROTO_TCP,
        "UDP" => IPPROTO_UDP,
        "SCTP" => IPPROTO_SCTP,
        "FWM" => 0,
        _ => return None,
    };
    let at = words.next()?;
    let (address, fwmark) = match protocol {
        0 => {
            let mark = u32::from_str_radix(at, 16).ok().filter(|mark| *mark != 0)?;
            (SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), mark)
        }
        _ => (address(at)?, 0),
    };
    Some(IpvsService {
        ip: address.ip(),
        port: address.port(),
        fwmark,
        protocol,
        scheduler: words.next().unwrap_or_default().to_owned(),
        destinations: Vec::new(),
    })
}

/// Parses `0A000202:0CEA      Masq    1      0          0`.
fn destination<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<IpvsDestination> {
    let address = address(words.next()?)?;
    let forward = match words.next()? {
        "Masq" => 0,
        "Local" => 1,
        "Tunnel" => 2,
        "Route" => 3,
        "Bypass" => 4,
        _ => return None,
    };
    let weight = words.next()?.parse().ok()?;
    Some(IpvsDestination { ip: address.ip(), port: address.port(), weight, forward })
}

/// Parses `0A600001:0CEA` or `[fd00:0000:…:0001]:0CEA`.
fn address(word: &str) -> Option<SocketAddr> {
    let (ip, port) = word.rsplit_once(':')?;
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    Some(SocketAddr::new(ipvs_conn::ip(ip)?, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINUX_6_1: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A640001:0CEA rr
  -> 0A000303:0CEA      Masq    0      0          0
  -> 0A000202:0CEA      Masq    1      2          0
UDP  0A640001:0035 wrr persistent 360 FFFFFFFF
TCP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0050 sh
  -> [fd00:0000:0000:0000:0000:0000:0000:0002]:0050      Route   5      0          0
FWM  00000005 rr
";

    #[test]
    fn services_of_every_kind_are_read_with_their_servers() {
        let services = parse(LINUX_6_1);
        let read: Vec<_> = services
            .iter()
            .map(|it| {
                let servers: Vec<_> =
                    it.destinations.iter().map(|it| (it.port, it.weight, it.forward)).collect();
                (it.protocol, it.ip.to_string(), it.port, it.fwmark, servers)
            })
            .collect();
        assert_eq!(
            read,
            [
                (0, "0.0.0.0".into(), 0, 5, vec![]),
                (17, "10.100.0.1".into(), 53, 0, vec![]),
                (6, "10.100.0.1".into(), 3306, 0, vec![(3306, 1, 0), (3306, 0, 0)]),
                (6, "fd00::1".into(), 80, 0, vec![(80, 5, 3)]),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "((TCP|UDP|FWM|  ->) [\\[\\]0-9A-F: Masq]{0,40}\n|\\PC{0,30}\n){0,6}") {
            parse(&text);
        }
    }
}
