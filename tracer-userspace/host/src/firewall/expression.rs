//! Evaluates the expressions of an nftables rule (`linux/netfilter/nf_tables.h`) for an INVALID packet. Of
//! the kernel's registers, only those that hold the conntrack state, the outgoing interface or the transport
//! protocol are tracked.

use std::{collections::BTreeMap, io};

use rsttrace_model::firewall::{Answer, Interface, Outgoing};
use tracer_common::net::IPPROTO_TCP;

use super::{
    super::nlmsg::{attributes, leading, malformed},
    rule::Step,
    xtables,
};

pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;

pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
const NF_DROP: i32 = 0;
pub(super) const NFT_JUMP: i32 = -3;
pub(super) const NFT_GOTO: i32 = -4;

pub(super) const NFT_CT_STATE: u32 = 0;
const NFT_META_OIF: u32 = 5;
const NFT_META_OIFNAME: u32 = 7;
pub(super) const NFT_META_L4PROTO: u32 = 16;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFT_BITWISE_MASK_XOR: u32 = 0;
pub(super) const NFT_LOOKUP_F_INV: u32 = 1;
pub(super) const NFT_REJECT_TCP_RST: u32 = 1;

/// `NF_CT_STATE_INVALID_BIT`, the value of `ct state` for an INVALID packet.
const INVALID: u32 = 1;

/// Keys of a set or map, with the verdict of each key in a verdict map.
pub(super) type Elements = Vec<(Vec<u8>, Option<Step>)>;

/// The steps of a rule, as far as they can be evaluated.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Steps {
    Known(Vec<Step>),
    /// The rule looks up the conntrack state in this set, whose elements were not passed.
    NeedsSet(String),
}

#[derive(Clone, Copy)]
enum Value {
    State(u32),
    OutName,
    OutIndex,
    Protocol,
}

/// An expression's attributes: type and payload.
pub(super) struct Fields<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Fields<'a> {
    pub(super) fn of(data: &'a [u8]) -> io::Result<Self> {
        attributes(data).collect::<io::Result<_>>().map(Self)
    }

    pub(super) fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(it, _)| *it == kind).map(|(_, payload)| *payload)
    }

    /// A number in network byte order, as all nftables numbers are. A missing attribute is 0, because the
    /// kernel omits some attributes.
    pub(super) fn number(&self, kind: u16) -> io::Result<u32> {
        self.bytes(kind).map_or(Ok(0), |payload| leading(payload).map(u32::from_be_bytes))
    }

    pub(super) fn text(&self, kind: u16) -> String {
        self.bytes(kind).map(text).unwrap_or_default()
    }

    /// The value inside a `struct nft_data`.
    pub(super) fn value(&self, kind: u16) -> io::Result<&'a [u8]> {
        let data = Fields::of(self.bytes(kind).unwrap_or_default())?;
        Ok(data.bytes(NFTA_DATA_VALUE).unwrap_or_default())
    }

    /// The value of one 32-bit register, in host byte order.
    pub(super) fn word(&self, kind: u16) -> io::Result<u32> {
        leading(self.value(kind)?).map(u32::from_ne_bytes)
    }
}

/// A name without the terminating NUL.
pub(super) fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

/// The expressions in `NFTA_RULE_EXPRESSIONS`, each with its name and attributes.
pub(super) fn each(expressions: &[u8]) -> impl Iterator<Item = io::Result<(String, Fields<'_>)>> {
    let elements = attributes(expressions)
        .filter(|attribute| !matches!(attribute, Ok((kind, _)) if *kind != NFTA_LIST_ELEM));
    elements.map(|attribute| {
        let expression = Fields::of(attribute?.1)?;
        let data = Fields::of(expression.bytes(NFTA_EXPR_DATA).unwrap_or_default())?;
        Ok((expression.text(NFTA_EXPR_NAME), data))
    })
}

/// Evaluates `NFTA_RULE_EXPRESSIONS` of a rule in a table of `family`.
pub(super) fn steps(
    family: u8,
    expressions: &[u8],
    sets: &BTreeMap<String, Elements>,
) -> io::Result<Steps> {
    let mut registers: BTreeMap<u32, Value> = BTreeMap::new();
    let mut steps = Vec::new();
    for expression in each(expressions) {
        let (name, it) = expression?;
        match name.as_str() {
            "ct" if it.number(2)? == NFT_CT_STATE && it.bytes(1).is_some() => {
                registers.insert(it.number(1)?, Value::State(INVALID));
            }
            "meta" if it.bytes(1).is_some() => {
                let value = match it.number(2)? {
                    NFT_META_OIFNAME => Some(Value::OutName),
                    NFT_META_OIF => Some(Value::OutIndex),
                    NFT_META_L4PROTO => Some(Value::Protocol),
                    _ => None,
                };
                let to = it.number(1)?;
                registers.remove(&to);
                registers.extend(value.map(|value| (to, value)));
            }
            "bitwise" => {
                let value = match registers.get(&it.number(1)?) {
                    Some(Value::State(state)) if it.number(6)? == NFT_BITWISE_MASK_XOR => {
                        Some(Value::State(state & it.word(4)? ^ it.word(5)?))
                    }
                    _ => None,
                };
                let to = it.number(2)?;
                registers.remove(&to);
                registers.extend(value.map(|value| (to, value)));
            }
            "cmp" => {
                let value = registers.get(&it.number(1)?).copied();
                steps.push(compared(value, it.number(2)?, it.value(3)?)?);
            }
            "lookup" => match registers.get(&it.number(2)?) {
                Some(Value::State(state)) => {
                    let name = it.text(1);
                    let Some(set) = sets.get(&name) else { return Ok(Steps::NeedsSet(name)) };
                    let found = set.iter().find(|(key, _)| key.as_slice() == state.to_ne_bytes());
                    let inverted = it.number(5)? & NFT_LOOKUP_F_INV != 0;
                    steps.push(Step::State(found.is_some() != inverted));
                    steps.extend(found.and_then(|(_, verdict)| verdict.clone()));
                }
                Some(Value::OutName | Value::OutIndex) => steps.push(Step::Out(Outgoing::Some)),
                Some(Value::Protocol) | None => steps.push(Step::Narrow),
            },
            "immediate" => steps.extend(verdict(it.bytes(2).unwrap_or_default())?),
            "reject" => {
                let reset = it.number(1)? == NFT_REJECT_TCP_RST;
                steps.push(Step::Answer(if reset { Answer::Reset } else { Answer::Icmp }));
            }
            "masq" => steps.push(Step::Masquerade),
            "match" => {
                let info = it.bytes(3).unwrap_or_default();
                steps.extend(xtables::a_match(&it.text(1), it.number(2)?, info)?);
            }
            "target" => {
                let info = it.bytes(3).unwrap_or_default();
                steps.extend(xtables::a_target(&it.text(1), family, info)?);
            }
            "counter" | "log" | "last" => {}
            "range" | "limit" | "quota" | "connlimit" | "dynset" | "objref" => {
                steps.push(Step::Narrow)
            }
            // An unknown expression may write to any register.
            _ => registers.clear(),
        }
    }
    Ok(Steps::Known(steps))
}

fn compared(value: Option<Value>, operator: u32, with: &[u8]) -> io::Result<Step> {
    let interface = match value {
        None => return Ok(Step::Narrow),
        Some(Value::State(state)) => {
            let equal = state == u32::from_ne_bytes(leading(with)?);
            return Ok(match operator {
                NFT_CMP_EQ => Step::State(equal),
                NFT_CMP_NEQ => Step::State(!equal),
                _ => Step::Narrow,
            });
        }
        Some(Value::Protocol) => {
            let tcp = with.first() == Some(&IPPROTO_TCP);
            return Ok(match operator {
                NFT_CMP_EQ => Step::Protocol(tcp),
                NFT_CMP_NEQ => Step::Protocol(!tcp),
                _ => Step::Narrow,
            });
        }
        Some(Value::OutIndex) => Interface::Index(u32::from_ne_bytes(leading(with)?)),
        Some(Value::OutName) if with.contains(&0) => Interface::Name(text(with)),
        Some(Value::OutName) => Interface::Prefix(text(with)),
    };
    Ok(Step::Out(match operator {
        NFT_CMP_EQ => Outgoing::Only(interface),
        NFT_CMP_NEQ => Outgoing::Except(interface),
        _ => Outgoing::Some,
    }))
}

/// The verdict in a `struct nft_data`. `None` for a verdict that lets the packet pass, and for a value.
fn verdict(data: &[u8]) -> io::Result<Option<Step>> {
    let Some(verdict) = Fields::of(data)?.bytes(NFTA_DATA_VERDICT) else { return Ok(None) };
    let verdict = Fields::of(verdict)?;
    let code = verdict.bytes(NFTA_VERDICT_CODE).ok_or_else(|| malformed("missing verdict code"))?;
    Ok(match i32::from_be_bytes(leading(code)?) {
        NF_DROP => Some(Step::Answer(Answer::Drop)),
        NFT_JUMP | NFT_GOTO => Some(Step::Jump(verdict.text(NFTA_VERDICT_CHAIN))),
        _ => None,
    })
}

/// Parses `NFTA_SET_ELEM_LIST_ELEMENTS` of a message.
pub(super) fn elements(list: &[u8]) -> io::Result<Elements> {
    let mut elements = Vec::new();
    for attribute in attributes(list) {
        let (NFTA_LIST_ELEM, element) = attribute? else { continue };
        let element = Fields::of(element)?;
        let key = element.value(NFTA_SET_ELEM_KEY)?.to_vec();
        elements.push((key, verdict(element.bytes(NFTA_SET_ELEM_DATA).unwrap_or_default())?));
    }
    Ok(elements)
}
