//! The tables of iptables-legacy, as the kernel gives them to `iptables-legacy-save`
//! (`linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`): one block of entries, each with
//! its matches and its target. Chains are ranges of offsets in the block.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use rsttrace_model::firewall::{Answer, Chain, Hook, Interface, Outgoing, RulePlace};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto::RAW, socket_with};
use tracer_common::net::{AF_INET, AF_INET6, IPPROTO_TCP};

use super::{
    super::nlmsg::{leading, malformed},
    Reader,
    rejecting::{Packet, Rules},
    rule::{self, Step},
    xtables,
};

pub(super) mod for_packet;

/// `IPT_SO_GET_INFO`, and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Of `struct ipt_getinfo`.
const INFO_LEN: usize = 84;
/// Of `struct ipt_get_entries` before its entries: a name, the size, and padding to 8 bytes.
const ENTRIES_HEAD: usize = 40;
/// A table of a large cluster has some 20 MB.
const MOST_BYTES: usize = 64 << 20;
const HOOKS: usize = 5;

/// Of `struct xt_entry_match` and `struct xt_entry_target` before their data.
const PART_LEN: usize = 32;
const NAME_LEN: usize = 29;

/// Of a standard target: `-NF_DROP - 1`.
const DROPS: i32 = -1;

/// Where `struct ipt_entry` or `struct ip6t_entry` has its parts.
pub(super) struct Layout {
    family: &'static str,
    number: u8,
    /// Bytes of an address. Source, destination and their masks come first.
    address: usize,
    /// `IPT_F_GOTO`, `IP6T_F_GOTO`; the flags are the byte before `inverted`.
    goto: u8,
    out_interface: usize,
    out_mask: usize,
    protocol: usize,
    inverted: usize,
    /// Whether the entry names no source, destination or incoming interface: these bytes are zero.
    narrowing: [std::ops::Range<usize>; 2],
    target_offset: usize,
    length: usize,
}

const V4: Layout = Layout {
    family: "iptables",
    number: AF_INET,
    address: 4,
    goto: 0x02,
    out_interface: 32,
    out_mask: 64,
    protocol: 80,
    inverted: 83,
    // The masks of the addresses, and the mask of the incoming interface.
    narrowing: [8..16, 48..64],
    target_offset: 88,
    length: 112,
};

const V6: Layout = Layout {
    family: "ip6tables",
    number: AF_INET6,
    address: 16,
    goto: 0x04,
    out_interface: 80,
    out_mask: 112,
    protocol: 128,
    inverted: 132,
    narrowing: [32..64, 96..112],
    target_offset: 140,
    length: 168,
};

/// `IPT_INV_VIA_OUT` and `IPT_INV_PROTO`, `XT_INV_PROTO`.
const INVERTED_OUT: u8 = 0x02;
const INVERTED_PROTOCOL: u8 = 0x40;

/// Reads the table that `legacy_in` calls "iptables filter", of the calling thread's namespace.
///
/// # Errors
/// Without CAP_NET_ADMIN, or when the block is malformed. `reader` is unchanged then.
pub(super) fn read(named: &str, reader: &mut Reader) -> io::Result<()> {
    let (layout, table, info, block) = table(named)?;
    decode(&layout, table, &info, &block, reader)
}

/// Adds the chains and rules of such a table, evaluated for a packet.
///
/// # Errors
/// As [`read`].
pub(super) fn parts(named: &str, packet: Packet, rules: &mut Rules) -> io::Result<()> {
    let (layout, table, info, block) = table(named)?;
    for_packet::add(&layout, table, &info, &block, packet, rules)
}

/// A table's layout, name, `struct ipt_getinfo` and entries.
fn table(named: &str) -> io::Result<(Layout, &str, Vec<u8>, Vec<u8>)> {
    let (tool, table) = named.split_once(' ').ok_or_else(|| malformed("table"))?;
    let is_v6 = tool == "ip6tables";
    let (family, level, layout) = match is_v6 {
        true => (AddressFamily::INET6, libc::IPPROTO_IPV6, V6),
        false => (AddressFamily::INET, libc::IPPROTO_IP, V4),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(RAW))?;
    let mut info = vec![0; INFO_LEN];
    name_into(&mut info, table)?;
    get(&socket, level, GET_INFO, &mut info)?;
    let size = word(&info, 80)? as usize;
    if size > MOST_BYTES {
        return Err(malformed("table too large"));
    }
    let mut entries = vec![0; ENTRIES_HEAD + size];
    name_into(&mut entries, table)?;
    entries[32..36].copy_from_slice(&word(&info, 80)?.to_ne_bytes());
    // EAGAIN: the table has changed in between, and so it is not read this time.
    get(&socket, level, GET_ENTRIES, &mut entries)?;
    entries.drain(..ENTRIES_HEAD);
    Ok((layout, table, info, entries))
}

fn name_into(buffer: &mut [u8], name: &str) -> io::Result<()> {
    let room = buffer.get_mut(..name.len()).filter(|room| room.len() < 32);
    room.ok_or_else(|| malformed("name of a table"))?.copy_from_slice(name.as_bytes());
    Ok(())
}

fn get(socket: &OwnedFd, level: i32, name: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| malformed("length"))?;
    // SAFETY: the kernel writes at most `length` bytes, which is the length of the buffer, and both outlive the
    // call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes.get(at..).ok_or_else(|| malformed("table"))?;
    leading(bytes).map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> io::Result<usize> {
    let bytes = bytes.get(at..).ok_or_else(|| malformed("table"))?;
    leading(bytes).map(u16::from_ne_bytes).map(usize::from)
}

/// One entry of the block.
struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    target: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The name of a target: empty for a standard one.
    fn target_name(&self) -> String {
        name(self.target)
    }

    /// The verdict of a standard target: an offset to jump to, or negative.
    fn verdict(&self) -> io::Result<i32> {
        let bytes = self.target.get(PART_LEN..).ok_or_else(|| malformed("target"))?;
        leading(bytes).map(i32::from_ne_bytes)
    }

    /// The name and the data of each match.
    fn matches(&self, layout: &Layout) -> io::Result<Vec<(String, u32, &'a [u8])>> {
        let end = self.bytes.len() - self.target.len();
        let mut bytes = self.bytes.get(layout.length..end).ok_or_else(|| malformed("matches"))?;
        let mut list = Vec::new();
        while !bytes.is_empty() {
            let size = half(bytes, 0)?;
            let part = bytes.get(..size).filter(|part| part.len() >= PART_LEN);
            let part = part.ok_or_else(|| malformed("match"))?;
            list.push((name(part), u32::from(part[PART_LEN - 1]), &part[PART_LEN..]));
            bytes = &bytes[size..];
        }
        Ok(list)
    }
}

fn name(part: &[u8]) -> String {
    super::expression::text(part.get(2..2 + NAME_LEN).unwrap_or_default())
}

fn entries<'a>(layout: &Layout, block: &'a [u8]) -> io::Result<Vec<Entry<'a>>> {
    let mut list = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let rest = &block[at..];
        let (target, next) =
            (half(rest, layout.target_offset)?, half(rest, layout.target_offset + 2)?);
        let bytes = rest.get(..next).filter(|_| target >= layout.length);
        let bytes = bytes.ok_or_else(|| malformed("entry"))?;
        let target = bytes.get(target..).filter(|target| target.len() >= PART_LEN);
        let target = target.ok_or_else(|| malformed("target"))?;
        list.push(Entry { at, bytes, target });
        at += next;
    }
    Ok(list)
}

/// The chains of a block of entries.
struct Block<'a> {
    /// Where each chain begins.
    starts: BTreeMap<usize, Chain>,
    /// Base chains, each with its hook and whether its policy drops.
    bases: Vec<(Chain, Hook, bool)>,
    rules: Vec<(RulePlace, Entry<'a>)>,
}

fn located<'a>(
    layout: &Layout,
    table: &str,
    info: &[u8],
    block: &'a [u8],
) -> io::Result<Block<'a>> {
    let entries = entries(layout, block)?;
    let chain = |name: String| Chain { family: layout.family, table: table.to_owned(), name };
    let mut starts: BTreeMap<usize, Chain> = BTreeMap::new();
    let mut policies: BTreeMap<usize, Hook> = BTreeMap::new();
    let valid = word(info, 32)?;
    for (at, hook) in Hook::ALL.into_iter().enumerate() {
        if valid & 1 << at != 0 {
            let start = word(info, 36 + 4 * at)? as usize;
            starts.insert(start, chain(hook.id().to_uppercase()));
            policies.insert(word(info, 36 + 4 * (HOOKS + at))? as usize, hook);
        }
    }
    // A chain of the user begins behind an entry with its name; the last of these entries ends the table.
    for entry in entries.iter().filter(|entry| entry.target_name() == "ERROR") {
        let name = super::expression::text(&entry.target[PART_LEN..]);
        starts.insert(entry.at + entry.bytes.len(), chain(name));
    }
    let (mut bases, mut rules) = (Vec::new(), Vec::new());
    let mut current: Option<(Chain, u64)> = None;
    for entry in entries {
        if let Some(start) = starts.get(&entry.at) {
            current = Some((start.clone(), 0));
        }
        let Some((chain, number)) = &mut current else {
            continue;
        };
        *number += 1;
        match policies.get(&entry.at) {
            Some(hook) => bases.push((chain.clone(), *hook, entry.verdict()? == DROPS)),
            None => rules.push((RulePlace { chain: chain.clone(), handle: *number }, entry)),
        }
    }
    Ok(Block { starts, bases, rules })
}

/// Adds the chains and rules of a block of entries.
fn decode(
    layout: &Layout,
    table: &str,
    info: &[u8],
    block: &[u8],
    reader: &mut Reader,
) -> io::Result<()> {
    let Block { starts, bases, rules } = located(layout, table, info, block)?;
    let mut effects = Vec::new();
    for (at, entry) in rules {
        let effect = rule::effect(steps(layout, &entry, &starts)?);
        effects.extend(effect.map(|effect| (at, effect)));
    }
    for (chain, hook, drops) in bases {
        let kind = if table == "nat" { "nat" } else { "filter" };
        reader.base(chain, hook, kind, drops && table == "filter");
    }
    effects.into_iter().for_each(|(at, effect)| reader.rule(at, effect));
    Ok(())
}

/// The parts of a rule, as they matter for an INVALID packet.
fn steps(
    layout: &Layout,
    entry: &Entry<'_>,
    starts: &BTreeMap<usize, Chain>,
) -> io::Result<Vec<Step>> {
    let bytes = entry.bytes;
    let mut steps = Vec::new();
    let inverted = bytes[layout.inverted];
    let protocol = half(bytes, layout.protocol)?;
    if protocol != 0 {
        let is_tcp = protocol == usize::from(IPPROTO_TCP);
        steps.push(Step::Protocol(is_tcp != (inverted & INVERTED_PROTOCOL != 0)));
    }
    if layout.narrowing.iter().any(|range| bytes[range.clone()].iter().any(|byte| *byte != 0)) {
        steps.push(Step::Narrow);
    }
    let mask = &bytes[layout.out_mask..layout.out_mask + 16];
    let compared = mask.iter().take_while(|byte| **byte != 0).count();
    if compared > 0 {
        let name = &bytes[layout.out_interface..layout.out_interface + compared];
        let text = super::expression::text(name);
        // The mask covers the NUL of a whole name.
        let interface =
            if name.contains(&0) { Interface::Name(text) } else { Interface::Prefix(text) };
        steps.push(Step::Out(match inverted & INVERTED_OUT {
            0 => Outgoing::Only(interface),
            _ => Outgoing::Except(interface),
        }));
    }
    for (name, revision, info) in entry.matches(layout)? {
        steps.extend(xtables::a_match(&name, revision, info)?);
    }
    let name = entry.target_name();
    if !name.is_empty() {
        steps.extend(xtables::a_target(&name, layout.number, &entry.target[PART_LEN..])?);
        return Ok(steps);
    }
    match entry.verdict()? {
        DROPS => steps.push(Step::Answer(Answer::Drop)),
        // A negative verdict lets the packet pass or ends the chain.
        verdict => {
            let to = usize::try_from(verdict).ok().and_then(|at| starts.get(&at));
            steps.extend(to.map(|chain| Step::Jump(chain.name.clone())));
        }
    }
    Ok(steps)
}

#[cfg(test)]
#[path = "legacy_tests.rs"]
pub(super) mod tests;
