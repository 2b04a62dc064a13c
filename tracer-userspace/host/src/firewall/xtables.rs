//! Matches and targets of iptables inside an nftables rule (`linux/netfilter/nf_tables_compat.h`). The
//! kernel sends their structures unchanged.

use std::io;

use rsttrace_model::firewall::Answer;
use tracer_common::net::AF_INET6;

use super::{
    super::nlmsg::{leading, malformed},
    rejecting::{Packet, Part, Verdict},
    rule::Step,
    stateful::ESTABLISHED_OR_NEW,
};

/// `XT_CONNTRACK_STATE_INVALID`, `XT_STATE_INVALID`
const INVALID: u32 = 1;
/// `XT_CONNTRACK_STATE`
const BY_STATE: u16 = 1;
/// Offset of `match_flags`, `invert_flags`, `state_mask` in `struct xt_conntrack_mtinfo1` to 3
/// (`linux/netfilter/xt_conntrack.h`); it is the same in all three.
const FLAGS: usize = 146;

/// `IPT_TCP_RESET` (`linux/netfilter_ipv4/ipt_REJECT.h`) and `IP6T_TCP_RESET`.
const TCP_RESET_4: u32 = 7;
const TCP_RESET_6: u32 = 6;

pub(super) fn a_match(name: &str, revision: u32, info: &[u8]) -> io::Result<Vec<Step>> {
    let step = match (name, revision) {
        ("conntrack", 1..=3) => conntrack(revision, info)?,
        ("state", _) => vec![Step::State(u32::from_ne_bytes(leading(info)?) & INVALID != 0)],
        ("comment", _) => Vec::new(),
        _ => vec![Step::Narrow],
    };
    Ok(step)
}

/// Whether a match distinguishes packets of connections that conntrack knows from others.
pub(super) fn tests_state(name: &str, revision: u32, info: &[u8]) -> io::Result<bool> {
    Ok(match (name, revision) {
        ("conntrack", 1..=3) => {
            let State { matched, states, .. } = state(revision, info)?;
            matched & BY_STATE != 0 && states & ESTABLISHED_OR_NEW != 0
        }
        ("state", _) => u32::from_ne_bytes(leading(info)?) & ESTABLISHED_OR_NEW != 0,
        _ => false,
    })
}

/// The first fields of a match on conntrack.
struct State {
    matched: u16,
    inverted: u16,
    states: u32,
}

fn state(revision: u32, info: &[u8]) -> io::Result<State> {
    let at = |offset: usize| info.get(offset..).ok_or_else(|| malformed("match too short"));
    let matched = u16::from_ne_bytes(leading(at(FLAGS)?)?);
    let inverted = u16::from_ne_bytes(leading(at(FLAGS + 2)?)?);
    let states = match revision {
        1 => u32::from(leading::<1>(at(FLAGS + 4)?)?[0]),
        _ => u32::from(u16::from_ne_bytes(leading(at(FLAGS + 4)?)?)),
    };
    Ok(State { matched, inverted, states })
}

fn conntrack(revision: u32, info: &[u8]) -> io::Result<Vec<Step>> {
    let State { matched, inverted, states } = state(revision, info)?;
    let mut steps = Vec::new();
    if matched & BY_STATE != 0 {
        steps.push(Step::State((states & INVALID != 0) != (inverted & BY_STATE != 0)));
    }
    if matched & !BY_STATE != 0 {
        steps.push(Step::Narrow);
    }
    Ok(steps)
}

/// `family` is the family of the table.
pub(super) fn a_target(name: &str, family: u8, info: &[u8]) -> io::Result<Option<Step>> {
    let step = match name {
        "REJECT" => {
            let with = u32::from_ne_bytes(leading(info)?);
            let reset = if family == AF_INET6 { TCP_RESET_6 } else { TCP_RESET_4 };
            Step::Answer(if with == reset { Answer::Reset } else { Answer::Icmp })
        }
        "DROP" => Step::Answer(Answer::Drop),
        "MASQUERADE" => Step::Masquerade,
        _ => return Ok(None),
    };
    Ok(Some(step))
}

/// A match, for a packet whose destination is known.
pub(super) fn for_packet(
    name: &str,
    revision: u32,
    info: &[u8],
    packet: Packet,
) -> io::Result<Part> {
    /// `XT_TCP_INV_DSTPT`, `linux/netfilter/xt_tcpudp.h`.
    const INVERTED_PORTS: u8 = 0x02;
    /// `XT_MULTIPORT_SOURCE`, `linux/netfilter/xt_multiport.h`.
    const SOURCE: u8 = 0;
    let port = packet.dst.port();
    Ok(match (name, revision) {
        ("comment", _) => Part::Comment(super::expression::text(info)),
        // Source ports, destination ports, option, flags compared, flags, inversions.
        ("tcp", 0) => {
            let [first, last, from, to] = halves(info)?;
            let end = info.get(8..12).ok_or_else(|| malformed("match too short"))?;
            let is_inside = (from..=to).contains(&port) != (end[3] & INVERTED_PORTS != 0);
            let is_all = (first, last) == (0, u16::MAX) && end[..3] == [0; 3];
            Part::Test(if is_inside && !is_all { None } else { Some(is_inside) })
        }
        ("udp" | "icmp" | "icmp6" | "sctp", _) => Part::Test(Some(false)),
        // Kind, count, 15 ports, for each whether it begins a range, inversion.
        ("multiport", 1) => {
            let ports: [u16; 15] = halves(info.get(2..).unwrap_or_default())?;
            let rest = info.get(32..48).ok_or_else(|| malformed("match too short"))?;
            let count = usize::from(info[1]).min(ports.len());
            let mut is_inside = false;
            for at in 0..count {
                let to = if rest[at] == 0 { ports[at] } else { *ports.get(at + 1).unwrap_or(&0) };
                is_inside |= (ports[at]..=to).contains(&port);
            }
            let holds = is_inside != (rest[15] != 0);
            // Source ports are not known; "either" matches by them too.
            match info[0] {
                SOURCE => Part::Test(None),
                1 => Part::Test(Some(holds)),
                _ => Part::Test(holds.then_some(true)),
            }
        }
        _ => Part::Test(None),
    })
}

/// Numbers of 16 bits in host order.
fn halves<const N: usize>(bytes: &[u8]) -> io::Result<[u16; N]> {
    let mut numbers = [0; N];
    for (number, at) in numbers.iter_mut().zip((0..).step_by(2)) {
        let bytes = bytes.get(at..).ok_or_else(|| malformed("match too short"))?;
        *number = u16::from_ne_bytes(leading(bytes)?);
    }
    Ok(numbers)
}

/// A target, as far as it decides about the packet.
pub(super) fn target_part(name: &str, family: u8, info: &[u8]) -> io::Result<Option<Part>> {
    Ok(match a_target(name, family, info)? {
        Some(Step::Answer(Answer::Drop)) => Some(Part::Verdict(Verdict::Ends)),
        Some(Step::Answer(answer)) => Some(Part::Reject(answer)),
        _ => None,
    })
}
