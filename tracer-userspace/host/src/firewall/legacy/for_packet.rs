//! Rules of iptables-legacy, evaluated for a packet whose destination is known.

use std::{collections::BTreeMap, io};

use rsttrace_model::firewall::Chain;
use tracer_common::net::{AF_INET, IPPROTO_TCP};

use super::{
    super::{
        rejecting::{Body, Packet, Part, Rule, Rules, Verdict},
        xtables,
    },
    Entry, INVERTED_PROTOCOL, Layout, PART_LEN, half, located,
};

/// `XT_RETURN`, `-NF_REPEAT - 1`.
const RETURNS: i32 = -5;
/// `IPT_INV_DSTIP`.
const INVERTED_DESTINATION: u8 = 0x10;

/// Adds the chains and rules, evaluated for a packet. The table `nat` does not reject.
pub(in super::super) fn add(
    layout: &Layout,
    table: &str,
    info: &[u8],
    block: &[u8],
    packet: Packet,
    rules: &mut Rules,
) -> io::Result<()> {
    if table == "nat" || (layout.number == AF_INET) != packet.is_v4() {
        return Ok(());
    }
    let block = located(layout, table, info, block)?;
    let mut list = Vec::new();
    for (at, entry) in block.rules {
        let parts = packet_parts(layout, &entry, &block.starts, packet)?;
        list.push(Rule { at, comment: None, body: Body::Parts(parts) });
    }
    rules.bases.extend(block.bases.into_iter().map(|(chain, hook, _)| (hook, chain)));
    list.into_iter().for_each(|rule| rules.add(rule));
    Ok(())
}

/// The parts of a rule for a packet.
fn packet_parts(
    layout: &Layout,
    entry: &Entry<'_>,
    starts: &BTreeMap<usize, Chain>,
    packet: Packet,
) -> io::Result<Vec<Part>> {
    let bytes = entry.bytes;
    let mut parts = Vec::new();
    let inverted = bytes[layout.inverted];
    let protocol = half(bytes, layout.protocol)?;
    if protocol != 0 {
        let is_tcp = protocol == usize::from(IPPROTO_TCP);
        parts.push(Part::Test(Some(is_tcp != (inverted & INVERTED_PROTOCOL != 0))));
    }
    let length = layout.address;
    let (to, mask) = (&bytes[length..2 * length], &bytes[3 * length..4 * length]);
    let address = packet.address();
    let is_inside = address.iter().zip(mask).zip(to).all(|((byte, mask), to)| byte & mask == *to);
    if mask.iter().any(|byte| *byte != 0) {
        parts.push(Part::Test(Some(is_inside != (inverted & INVERTED_DESTINATION != 0))));
    }
    // A source or an interface.
    let unknown = [
        2 * length..3 * length,
        layout.narrowing[1].clone(),
        layout.out_mask..layout.out_mask + 16,
    ];
    if unknown.into_iter().any(|range| bytes[range].iter().any(|byte| *byte != 0)) {
        parts.push(Part::Test(None));
    }
    for (name, revision, info) in entry.matches(layout)? {
        parts.push(xtables::for_packet(&name, revision, info, packet)?);
    }
    let name = entry.target_name();
    if !name.is_empty() {
        parts.extend(xtables::target_part(&name, layout.number, &entry.target[PART_LEN..])?);
        return Ok(parts);
    }
    let goes = bytes[layout.inverted - 1] & layout.goto != 0;
    let verdict = match entry.verdict()? {
        RETURNS => Some(Verdict::Returns),
        at => match usize::try_from(at) {
            Err(_) => Some(Verdict::Ends),
            // To the next entry: a rule without a target.
            Ok(at) if at == entry.at + bytes.len() => None,
            Ok(at) => starts.get(&at).map(|chain| match goes {
                true => Verdict::Goto(chain.name.clone()),
                false => Verdict::Jump(chain.name.clone()),
            }),
        },
    };
    parts.extend(verdict.map(Part::Verdict));
    Ok(parts)
}
