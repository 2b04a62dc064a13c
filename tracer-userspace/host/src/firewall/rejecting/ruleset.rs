//! Rules of nftables, evaluated for a packet (`linux/netfilter/nf_tables.h`). A set is asked for one element, so
//! that the maps of a large cluster are not read as a whole.

use std::{collections::BTreeMap, io, time::Instant};

use rsttrace_model::firewall::{Answer, Chain, RulePlace};
use rustix::net::netlink::NETFILTER;
use tracer_common::net::IPPROTO_TCP;

use super::{
    super::{
        super::{
            netlink::Link,
            nlmsg::{Attributes, attributes, leading, malformed},
        },
        expression::{
            Fields, NFT_GOTO, NFT_JUMP, NFT_LOOKUP_F_INV, NFT_META_L4PROTO, NFT_REJECT_TCP_RST,
            NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_LIST_ELEM, NFTA_SET_ELEM_DATA,
            NFTA_SET_ELEM_KEY, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE, each, text,
        },
        netlink as nft, xtables,
    },
    Packet, Part, Verdict,
    walk::{Body, Rule, Rules},
};

const GET_SET: u16 = nft::NFTABLES | 10;

const NFTA_RULE_USERDATA: u16 = 7;
/// `NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl.
const COMMENT: u8 = 0;

const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_KEY_LEN: u16 = 5;

const NFTA_SET_ELEM_USERDATA: u16 = 6;

const NFT_CONTINUE: i32 = -1;
const NFT_RETURN: i32 = -5;

const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_META_NFPROTO: u32 = 15;
/// Of an IPv4 and an IPv6 header: the byte with the protocol, and the destination.
const V4_PROTOCOL: usize = 9;
const V4_DESTINATION: usize = 16;
const V6_PROTOCOL: usize = 6;
const V6_DESTINATION: usize = 24;

/// An element that was found.
#[derive(Default)]
pub struct Element {
    verdict: Option<Verdict>,
    comment: Option<String>,
}

/// Finds the element of a set (family, table, set, key).
pub type Find<'a> = &'a mut dyn FnMut(u8, &str, &str, &[u8]) -> io::Result<Option<Element>>;

/// The lengths of the keys of all sets, in bytes.
#[derive(Default)]
pub struct Ruleset(BTreeMap<(&'static str, String, String), usize>);

impl Ruleset {
    /// Adds the chains and rules of the calling thread's namespace.
    pub fn read(rules: &mut Rules) -> io::Result<(Link, Self)> {
        let mut link = Link::open(NETFILTER, Instant::now() + nft::TIMEOUT)?;
        let mut ruleset = Self::default();
        let all: &[&[u8]] = &[&[nft::NFPROTO_UNSPEC, 0, 0, 0]];
        link.dump(nft::GET_CHAIN, all, &mut |body| chain(body, rules))?;
        link.dump(nft::GET_RULE, all, &mut |body| rule(body, rules))?;
        link.dump(GET_SET, all, &mut |body| ruleset.set(body))?;
        Ok((link, ruleset))
    }

    pub fn set(&mut self, body: &[u8]) -> io::Result<()> {
        let (family, bytes) = nft::split(body)?;
        let fields = Fields::of(bytes)?;
        if let Some(family) = nft::family_name(family) {
            let length = fields.number(NFTA_SET_KEY_LEN)? as usize;
            let key = (family, fields.text(NFTA_SET_TABLE), fields.text(NFTA_SET_NAME));
            self.0.insert(key, length);
        }
        Ok(())
    }

    /// The parts of a rule for a packet.
    pub fn parts(&mut self, rule: &Rule, packet: Packet, find: Find<'_>) -> io::Result<Vec<Part>> {
        let Body::Expressions(expressions) = &rule.body else { return Ok(Vec::new()) };
        let Chain { family, table, name } = &rule.at.chain;
        let number = match *family {
            "ip" => nft::NFPROTO_IPV4,
            "ip6" => nft::NFPROTO_IPV6,
            _ => nft::NFPROTO_INET,
        };
        if (number == nft::NFPROTO_IPV4 && !packet.is_v4())
            || (number == nft::NFPROTO_IPV6 && packet.is_v4())
        {
            return Ok(Vec::new());
        }
        let mut registers = Registers::default();
        let mut parts = Vec::new();
        // A served port is translated before the packet comes here (`setupNFTables`, pkg/proxy/nftables).
        if (table.as_str(), name.as_str()) == ("kube-proxy", "cluster-ips-check") {
            let is_served = find(number, table, "service-ips", &packet.key())?.is_some();
            parts.push(Part::Test(Some(!is_served)));
        }
        for expression in each(expressions) {
            let (name, it) = expression?;
            match name.as_str() {
                "payload" if it.bytes(1).is_some() => {
                    let (base, offset) = (it.number(2)?, it.number(3)? as usize);
                    let bytes = header(packet, base, offset, it.number(4)? as usize);
                    registers.load(it.number(1)?, bytes);
                }
                "meta" if it.bytes(1).is_some() => {
                    let family = if packet.is_v4() { nft::NFPROTO_IPV4 } else { nft::NFPROTO_IPV6 };
                    let value = match it.number(2)? {
                        NFT_META_NFPROTO => Some(vec![family]),
                        NFT_META_L4PROTO => Some(vec![IPPROTO_TCP]),
                        _ => None,
                    };
                    registers.load(it.number(1)?, value);
                }
                "ct" if it.bytes(1).is_some() => registers.load(it.number(1)?, None),
                "bitwise" => {
                    let (mask, xor) = (it.value(4)?, it.value(5)?);
                    let bytes = registers.get(it.number(1)?, it.number(3)? as usize);
                    let is_plain = it.number(6)? == 0;
                    let value = bytes.filter(|it| is_plain && it.len() == mask.len());
                    let value = value.filter(|it| it.len() == xor.len()).map(|bytes| {
                        let masked = bytes.iter().zip(mask).zip(xor);
                        masked.map(|((byte, mask), xor)| byte & mask ^ xor).collect()
                    });
                    registers.load(it.number(2)?, value);
                }
                "cmp" => {
                    let with = it.value(3)?;
                    let bytes = registers.get(it.number(1)?, with.len());
                    let operator = it.number(2)?;
                    parts.push(Part::Test(bytes.and_then(|it| compared(&it, operator, with))));
                }
                "range" => {
                    let (from, to) = (it.value(3)?, it.value(4)?);
                    let bytes = registers.get(it.number(1)?, from.len());
                    let is_inverted = it.number(2)? != 0;
                    let holds = bytes.map(|it| (from..=to).contains(&&it[..]) != is_inverted);
                    parts.push(Part::Test(holds));
                }
                "lookup" => {
                    let set = it.text(1);
                    let length = self.0.get(&(*family, table.clone(), set.clone())).copied();
                    let key = length.and_then(|length| {
                        registers.get(it.number(2).ok()?, length).filter(|key| !key.is_empty())
                    });
                    let Some(key) = key else {
                        parts.push(Part::Test(None));
                        continue;
                    };
                    let found = find(number, table, &set, &key)?;
                    let is_inverted = it.number(5)? & NFT_LOOKUP_F_INV != 0;
                    parts.push(Part::Test(Some(found.is_some() != is_inverted)));
                    if it.bytes(3).is_some() {
                        let to = it.number(3)?;
                        if to != 0 {
                            registers.load(to, None);
                        }
                        let Element { verdict, comment } = found.unwrap_or_default();
                        parts.extend(comment.map(Part::Because));
                        parts.extend(verdict.map(Part::Verdict));
                    }
                }
                "immediate" => {
                    let data = Fields::of(it.bytes(2).unwrap_or_default())?;
                    match data.bytes(NFTA_DATA_VERDICT) {
                        Some(data) => parts.extend(verdict(data)?.map(Part::Verdict)),
                        None => {
                            let value = data.bytes(NFTA_DATA_VALUE).map(<[u8]>::to_vec);
                            registers.load(it.number(1)?, value);
                        }
                    }
                }
                "reject" => {
                    let is_reset = it.number(1)? == NFT_REJECT_TCP_RST;
                    parts.push(Part::Reject(if is_reset { Answer::Reset } else { Answer::Icmp }));
                }
                "match" => {
                    let info = it.bytes(3).unwrap_or_default();
                    parts.push(xtables::for_packet(&it.text(1), it.number(2)?, info, packet)?);
                }
                "target" => {
                    let family = if packet.is_v4() { nft::NFPROTO_IPV4 } else { nft::NFPROTO_IPV6 };
                    let info = it.bytes(3).unwrap_or_default();
                    parts.extend(xtables::target_part(&it.text(1), family, info)?);
                }
                "counter" | "log" | "last" => {}
                "limit" | "quota" | "connlimit" => parts.push(Part::Test(None)),
                // It may test something, or write to any register.
                _ => {
                    registers = Registers::default();
                    parts.push(Part::Test(None));
                }
            }
        }
        Ok(parts)
    }
}

pub fn chain(body: &[u8], rules: &mut Rules) -> io::Result<()> {
    let (family, bytes) = nft::split(body)?;
    let fields = Fields::of(bytes)?;
    let hook = fields.bytes(nft::NFTA_CHAIN_HOOK).map(nft::hook_of).transpose()?.flatten();
    let is_nat = fields.text(nft::NFTA_CHAIN_TYPE) == "nat";
    if let (Some(family), Some(hook), false) = (nft::family_name(family), hook, is_nat) {
        let (table, name) = (fields.text(nft::NFTA_CHAIN_TABLE), fields.text(nft::NFTA_CHAIN_NAME));
        rules.bases.push((hook, Chain { family, table, name }));
    }
    Ok(())
}

pub fn rule(body: &[u8], rules: &mut Rules) -> io::Result<()> {
    let (family, bytes) = nft::split(body)?;
    let fields = Fields::of(bytes)?;
    let Some(family) = nft::family_name(family) else { return Ok(()) };
    let (table, name) = (fields.text(nft::NFTA_RULE_TABLE), fields.text(nft::NFTA_RULE_CHAIN));
    let handle = fields.bytes(nft::NFTA_RULE_HANDLE).map(leading).transpose()?;
    let handle = handle.map(u64::from_be_bytes).unwrap_or_default();
    let at = RulePlace { chain: Chain { family, table, name }, handle };
    let expressions = fields.bytes(nft::NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec();
    let comment = fields.bytes(NFTA_RULE_USERDATA).and_then(comment);
    rules.add(Rule { at, comment, body: Body::Expressions(expressions) });
    Ok(())
}

/// Asks for one element; of a set with intervals, for the interval that has the key.
pub fn element(
    link: &mut Link,
    family: u8,
    table: &str,
    set: &str,
    key: &[u8],
) -> io::Result<Option<Element>> {
    let (mut value, mut element, mut list, mut which) = <[Attributes; 4]>::default().into();
    value.put(NFTA_DATA_VALUE, key);
    element.put_nested(NFTA_SET_ELEM_KEY, &value);
    list.put_nested(NFTA_LIST_ELEM, &element);
    which.put(nft::NFTA_SET_ELEM_LIST_TABLE, &[table.as_bytes(), b"\0"].concat());
    which.put(nft::NFTA_SET_ELEM_LIST_SET, &[set.as_bytes(), b"\0"].concat());
    which.put_nested(nft::NFTA_SET_ELEM_LIST_ELEMENTS, &list);
    let mut found = None;
    let parts: &[&[u8]] = &[&[family, 0, 0, 0], which.bytes()];
    let result = link.request(nft::GET_SET_ELEMENTS, parts, &mut |body| {
        found = elements(body)?.into_iter().next().map(|(_, element)| element);
        Ok(())
    });
    match result {
        Ok(()) => Ok(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The keys and elements in a `NEWSETELEM` message.
pub fn elements(body: &[u8]) -> io::Result<Vec<(Vec<u8>, Element)>> {
    let (_, bytes) = nft::split(body)?;
    let fields = Fields::of(bytes)?;
    let list = fields.bytes(nft::NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
    let mut elements = Vec::new();
    for attribute in attributes(list) {
        let (NFTA_LIST_ELEM, element) = attribute? else { continue };
        let element = Fields::of(element)?;
        let data = Fields::of(element.bytes(NFTA_SET_ELEM_DATA).unwrap_or_default())?;
        let verdict = data.bytes(NFTA_DATA_VERDICT).map(verdict).transpose()?.flatten();
        let comment = element.bytes(NFTA_SET_ELEM_USERDATA).and_then(comment);
        elements.push((element.value(NFTA_SET_ELEM_KEY)?.to_vec(), Element { verdict, comment }));
    }
    Ok(elements)
}

fn verdict(data: &[u8]) -> io::Result<Option<Verdict>> {
    let fields = Fields::of(data)?;
    let code = fields.bytes(NFTA_VERDICT_CODE).ok_or_else(|| malformed("missing verdict code"))?;
    Ok(match i32::from_be_bytes(leading(code)?) {
        NFT_JUMP => Some(Verdict::Jump(fields.text(NFTA_VERDICT_CHAIN))),
        NFT_GOTO => Some(Verdict::Goto(fields.text(NFTA_VERDICT_CHAIN))),
        NFT_RETURN => Some(Verdict::Returns),
        NFT_CONTINUE => None,
        _ => Some(Verdict::Ends),
    })
}

/// The comment among the user data of a rule or an element: type, length and value of each.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return Some(text(value));
        }
        data = &rest[value.len()..];
    }
    None
}

/// Bytes of the packet's headers, where they are known.
fn header(packet: Packet, base: u32, offset: usize, length: usize) -> Option<Vec<u8>> {
    let (protocol, destination) = match packet.is_v4() {
        true => (V4_PROTOCOL, V4_DESTINATION),
        false => (V6_PROTOCOL, V6_DESTINATION),
    };
    let known = match base {
        NFT_PAYLOAD_NETWORK_HEADER if offset == protocol => vec![IPPROTO_TCP],
        NFT_PAYLOAD_NETWORK_HEADER => {
            packet.address().get(offset.checked_sub(destination)?..)?.to_vec()
        }
        // The destination port.
        NFT_PAYLOAD_TRANSPORT_HEADER => {
            packet.dst.port().to_be_bytes().get(offset.checked_sub(2)?..)?.to_vec()
        }
        _ => return None,
    };
    known.get(..length).map(<[u8]>::to_vec)
}

/// `NFT_CMP_EQ`, `NEQ`, `LT`, `LTE`, `GT`, `GTE`, on bytes in network order.
fn compared(value: &[u8], operator: u32, with: &[u8]) -> Option<bool> {
    Some(match operator {
        0 => value == with,
        1 => value != with,
        2 => value < with,
        3 => value <= with,
        4 => value > with,
        5 => value >= with,
        _ => return None,
    })
}

/// The kernel's registers: 16 words; 1 to 4 name four words each, 8 to 23 one.
#[derive(Default)]
struct Registers([Option<[u8; 4]>; 16]);

impl Registers {
    fn first(register: u32) -> usize {
        match register {
            1..=4 => (register as usize - 1) * 4,
            8..=23 => register as usize - 8,
            _ => usize::MAX,
        }
    }

    /// An unknown value makes four words unknown.
    fn load(&mut self, register: u32, bytes: Option<Vec<u8>>) {
        let words = self.0.iter_mut().skip(Self::first(register));
        match bytes {
            None => words.take(4).for_each(|word| *word = None),
            Some(bytes) => words.zip(bytes.chunks(4)).for_each(|(word, bytes)| {
                let mut value = [0; 4];
                value[..bytes.len()].copy_from_slice(bytes);
                *word = Some(value);
            }),
        }
    }

    fn get(&self, register: u32, length: usize) -> Option<Vec<u8>> {
        let words = self.0.get(Self::first(register)..)?.get(..length.div_ceil(4))?;
        let mut bytes: Vec<u8> = Vec::new();
        for word in words {
            bytes.extend((*word)?);
        }
        bytes.truncate(length);
        Some(bytes)
    }
}
