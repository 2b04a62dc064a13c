use std::mem::size_of;

use proptest::prelude::*;
use tracer_common::wire::KIND_LAST;

use super::*;

/// HZ 250, two known symbols, one known reason.
struct Canned;

impl Kernel for Canned {
    fn hz(&self) -> u64 {
        250
    }
    fn symbol(&self, address: u64) -> Option<&str> {
        match address {
            0x1000 => Some("tcp_send_active_reset"),
            0x2000 => Some("__tcp_close"),
            _ => None,
        }
    }
    fn reset_reason(&self, value: u32) -> Option<&str> {
        (value == 11).then_some("TCP_ABORT_ON_CLOSE")
    }
}

const TS: u64 = 500_000_000_000;
const JIFFIES: u64 = 0x1_0000_2000;

/// Bytes of a plain-integer struct, as the kernel side writes them.
fn bytes_of<T>(value: &T) -> Vec<u8> {
    // SAFETY: the wire structs hold integers only, without padding (asserted in tracer-common).
    unsafe { std::slice::from_raw_parts((value as *const T).cast::<u8>(), size_of::<T>()) }.to_vec()
}

fn record<T>(kind: u16, payload: &T) -> Vec<u8> {
    let header = Header {
        version: WIRE_VERSION,
        header_len: u8::try_from(size_of::<Header>()).expect("a small header"),
        kind,
        len: u32::try_from(size_of::<T>()).expect("a small payload"),
        ts_ns: TS,
        jiffies: JIFFIES,
        netns: 42,
        cpu: 1,
    };
    [bytes_of(&header), bytes_of(payload)].concat()
}

/// All-zero is a valid value of every wire struct.
fn zeroed<T>() -> T {
    // SAFETY: integers only.
    unsafe { std::mem::zeroed() }
}

fn mapped(last: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]
}

/// The event of a complete record of a TCP packet or a socket.
fn event(bytes: &[u8]) -> Event {
    decode(bytes, &Canned).expect("a whole record").expect("of TCP")
}

fn a_reset() -> Vec<u8> {
    let mut reset: record::ResetSent = zeroed();
    reset.sock.id = 0xffff_8880_0000_1000;
    reset.sock.flow.src_addr = mapped(1);
    reset.sock.flow.dst_addr = mapped(2);
    reset.sock.flow.src_port = 3306;
    reset.sock.flow.dst_port = 41822;
    reset.sock.state = 7;
    reset.sock.rcv_nxt = 105;
    reset.sock.copied_seq = 100;
    // Two seconds ago, across the wrap of the truncated jiffies.
    reset.sock.lrcvtime_j = (JIFFIES as u32).wrapping_sub(500);
    reset.sock.sysctl_keepalive_time_j = 7200 * 250;
    reset.task.comm[..5].copy_from_slice(b"mysql");
    reset.stack.frames[..2].copy_from_slice(&[0x1000, 0x2000]);
    reset.reason = 11;
    record(KIND_RESET_SENT, &reset)
}

#[test]
fn a_reset_decodes_to_the_written_values() {
    let event = event(&a_reset());
    assert_eq!((event.ts, event.netns), (TS, 42));
    let Body::ResetSent(reset) = event.body else { unreachable!("another kind") };
    let socket = reset.socket.as_ref().expect("a socket");
    assert_eq!(socket.flow.to_string(), "10.0.0.1:3306 -> 10.0.0.2:41822");
    assert_eq!(socket.unread, 5);
    assert_eq!(socket.last_received, Some(TS - 2_000_000_000));
    assert_eq!(socket.keepalive.time_s, 7200.0);
    assert_eq!(reset.reason.as_deref(), Some("TCP_ABORT_ON_CLOSE"));
    assert_eq!(reset.stack, ["tcp_send_active_reset".into(), "__tcp_close".into()]);
    assert_eq!((reset.task.comm.as_str(), &reset.trigger), ("mysql", &None));
}

fn wire_flow(src: (u8, u16), dst: (u8, u16)) -> record::Flow {
    let mut flow: record::Flow = zeroed();
    (flow.src_addr, flow.src_port) = (mapped(src.0), src.1);
    (flow.dst_addr, flow.dst_port) = (mapped(dst.0), dst.1);
    flow
}

#[test]
fn a_packet_rejected_between_its_translations_has_the_addresses_that_its_sender_used() {
    const CLIENT: (u8, u16) = (1, 41822);
    const VIP: (u8, u16) = (100, 3306);
    const SERVER: (u8, u16) = (2, 13306);
    // SNAT as well: the server has NODE as the address of the client.
    const NODE: (u8, u16) = (3, 50000);
    let decoded = |received: record::Flow, translated: bool| {
        let mut reject: record::RuleReject = zeroed();
        (reject.packet.flow, reject.packet.present) = (received, 1);
        if translated {
            (reject.original, reject.reply) = (wire_flow(CLIENT, VIP), wire_flow(SERVER, NODE));
        }
        let event = event(&record(KIND_RULE_REJECT, &reject));
        let Body::PacketDrop(drop) = event.body else { unreachable!("another kind") };
        (drop.packet.flow.to_string(), drop.nat().is_some())
    };
    let sent = |text: &str| (text.to_owned(), true);
    assert_eq!(decoded(wire_flow(CLIENT, SERVER), true), sent("10.0.0.1:41822 -> 10.0.0.100:3306"));
    assert_eq!(decoded(wire_flow(CLIENT, VIP), true), sent("10.0.0.1:41822 -> 10.0.0.100:3306"));
    assert_eq!(decoded(wire_flow(SERVER, CLIENT), true), sent("10.0.0.2:13306 -> 10.0.0.3:50000"));
    // Without a translated connection the packet keeps its addresses.
    let plain = ("10.0.0.1:41822 -> 10.0.0.2:13306".to_owned(), false);
    assert_eq!(decoded(wire_flow(CLIENT, SERVER), false), plain);
}

#[test]
fn a_longer_payload_of_a_newer_writer_is_accepted() {
    let mut bytes = a_reset();
    let whole = decode(&bytes, &Canned);
    bytes.extend([0xaa; 64]);
    assert_eq!(decode(&bytes, &Canned), whole);
}

#[test]
fn another_wire_version_is_rejected_with_its_number() {
    let mut bytes = a_reset();
    bytes[0] = WIRE_VERSION + 1;
    assert_eq!(decode(&bytes, &Canned), Err(DecodeError::Version { found: WIRE_VERSION + 1 }));
}

#[test]
fn a_packet_that_is_not_tcp_gives_no_event() {
    let bytes = record(KIND_NETFILTER_DROP, &zeroed::<record::NetfilterDrop>());
    assert_eq!(decode(&bytes, &Canned), Ok(None));
}

#[test]
fn an_unknown_kind_gives_an_unknown_event() {
    let bytes = record(KIND_LAST + 1, &0_u64);
    assert_eq!(event(&bytes).body, Body::Unknown { kind: KIND_LAST + 1, len: 8 });
}

#[test]
fn every_truncation_of_every_kind_is_an_error_and_never_a_panic() {
    let kinds = [
        record(KIND_RESET_SENT, &zeroed::<record::ResetSent>()),
        record(KIND_IPVS_END, &zeroed::<record::IpvsEnd>()),
        record(KIND_CONNTRACK_END, &zeroed::<record::ConntrackEnd>()),
        record(KIND_NAT_CHAIN_REMOVED, &zeroed::<record::NatChainRemoved>()),
        a_reset(),
    ];
    for whole in kinds {
        assert!(decode(&whole, &Canned).is_ok());
        // Trailing padding carries nothing, so the last few bytes may be missing.
        for len in 0..whole.len() - 16 {
            let cut = decode(&whole[..len], &Canned);
            assert!(cut.is_err() || whole[len..].iter().all(|byte| *byte == 0), "{len}: {cut:?}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        let _ = decode(&bytes, &Canned);
    }

    #[test]
    fn arbitrary_payloads_of_known_kinds_never_panic(
        kind in 0..=KIND_LAST + 1,
        payload in proptest::collection::vec(any::<u8>(), 0..700),
    ) {
        let mut bytes = record(kind, &0_u64);
        bytes.truncate(size_of::<Header>());
        bytes.extend(payload);
        if let Ok(Some(event)) = decode(&bytes, &Canned) {
            // The correlator must take any decoded event without a panic.
            crate::testing::replay([event]);
        }
    }
}

#[test]
fn the_drops_of_a_flow_decode_to_the_written_values_and_too_few_bytes_are_an_error() {
    let written = record::RuleDrop {
        first_ns: 5,
        last_ns: 9,
        count: 3,
        netns: 7,
        entry: record::ENTRY_NEW,
        pad: 0,
    };
    let bytes = bytes_of(&written);
    let flow = rsttrace_model::testing::flow("10.0.0.1:1", "10.0.0.2:2");
    let found = rule_drop(flow, &bytes).expect("complete");
    assert_eq!((found.first, found.last, found.count, found.netns), (5, 9, 3, 7));
    assert_eq!(found.entry, PacketEntry::Made);
    assert!(rule_drop(flow, &bytes[..20]).is_err());
}
