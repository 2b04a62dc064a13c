use super::*;

fn bytes(of: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = Attributes::default();
    for (kind, payload) in of {
        out.put(*kind, payload);
    }
    out.bytes().to_vec()
}

fn v4(ip: [u8; 4]) -> [u8; 16] {
    union_bytes(Ipv4Addr::from(ip).into())
}

#[test]
fn timeouts_are_seconds_in_host_order() {
    let reply = bytes(&[
        (IPVS_CMD_ATTR_TIMEOUT_TCP, &900_u32.to_ne_bytes()),
        (IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, &120_u32.to_ne_bytes()),
        (99, b"from a later kernel"),
    ]);
    let mut state = IpvsState::default();
    parse_timeouts(&reply, &mut state).expect("valid");
    assert_eq!(state.timeout_tcp_s, Some(900));
    assert_eq!(state.timeout_tcpfin_s, Some(120));
    assert_eq!(state.timeout_udp_s, None);
}

#[test]
fn an_ipv4_service_uses_four_bytes_of_the_union_and_a_big_endian_port() {
    let entry = bytes(&[
        (IPVS_SVC_ATTR_AF, &AF_INET.to_ne_bytes()),
        (IPVS_SVC_ATTR_PROTOCOL, &6_u16.to_ne_bytes()),
        (IPVS_SVC_ATTR_ADDR, &v4([10, 96, 12, 8])),
        (IPVS_SVC_ATTR_PORT, &3306_u16.to_be_bytes()),
        (IPVS_SVC_ATTR_SCHED_NAME, b"rr\0"),
    ]);
    assert_eq!(
        service(&entry).expect("valid"),
        IpvsService {
            ip: Ipv4Addr::new(10, 96, 12, 8).into(),
            port: 3306,
            fwmark: 0,
            protocol: 6,
            scheduler: "rr".into(),
            destinations: vec![],
        }
    );
}

#[test]
fn a_firewall_mark_service_has_a_family_but_no_address() {
    let entry = bytes(&[
        (IPVS_SVC_ATTR_AF, &AF_INET6.to_ne_bytes()),
        (IPVS_SVC_ATTR_FWMARK, &42_u32.to_ne_bytes()),
    ]);
    let service = service(&entry).expect("valid");
    assert_eq!((service.ip, service.fwmark), (Ipv6Addr::UNSPECIFIED.into(), 42));
}

#[test]
fn a_destination_has_the_service_family_unless_it_names_its_own() {
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
    let address = v6.octets();
    let mut of = vec![
        (IPVS_DEST_ATTR_ADDR, &address[..]),
        (IPVS_DEST_ATTR_PORT, &[0x1f, 0x90]),
        (IPVS_DEST_ATTR_WEIGHT, &[0; 4]),
    ];
    let expected = IpvsDestination { ip: v6.into(), port: 8080, weight: 0, forward: 0 };
    assert_eq!(destination(&bytes(&of), AF_INET6).expect("valid"), expected);
    let own = AF_INET6.to_ne_bytes();
    of.push((IPVS_DEST_ATTR_ADDR_FAMILY, &own));
    assert_eq!(destination(&bytes(&of), AF_INET).expect("valid"), expected);
}

#[test]
fn the_attributes_of_a_request_name_the_same_service() {
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    for (ip, fwmark) in
        [(IpAddr::from([10, 0, 0, 1]), 0), (v6.into(), 0), (Ipv4Addr::UNSPECIFIED.into(), 42)]
    {
        let (port, protocol) = if fwmark == 0 { (443, 6) } else { (0, 0) };
        let scheduler = String::new();
        let known = IpvsService { ip, port, fwmark, protocol, scheduler, destinations: vec![] };
        assert_eq!(service(service_key(&known).bytes()).expect("valid"), known);
    }
}

#[test]
fn malformed_entries_are_errors() {
    let unspecified = &v4([0; 4])[..];
    for entry in [
        bytes(&[]),
        bytes(&[(IPVS_SVC_ATTR_AF, &1_u16.to_ne_bytes())]),
        bytes(&[(IPVS_SVC_ATTR_AF, &[2])]),
        bytes(&[(IPVS_SVC_ATTR_AF, &AF_INET.to_ne_bytes()), (IPVS_SVC_ATTR_ADDR, &[10])]),
        bytes(&[(IPVS_SVC_ATTR_AF, &AF_INET.to_ne_bytes()), (IPVS_SVC_ATTR_PORT, &[1])]),
        bytes(&[(IPVS_SVC_ATTR_AF, &AF_INET.to_ne_bytes()), (IPVS_SVC_ATTR_PROTOCOL, &[0, 1, 0])]),
    ] {
        assert!(service(&entry).is_err(), "{entry:?}");
    }
    assert!(destination(&bytes(&[]), AF_INET).is_err());
    assert!(destination(&bytes(&[(IPVS_DEST_ATTR_ADDR, unspecified)]), 99).is_err());
    assert!(nested(&bytes(&[(9, b"x")]), IPVS_CMD_ATTR_SERVICE).is_err());
}
