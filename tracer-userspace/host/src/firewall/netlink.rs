//! Reads the ruleset by netlink: chains, rules, and the sets in which a rule looks up the conntrack state.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use rsttrace_model::firewall::{Chain, Firewall, Hook, RulePlace};
use rustix::net::netlink::NETFILTER;

use super::{
    super::{
        netlink::Link,
        nlmsg::{Attributes, attributes, leading, malformed},
    },
    Reader,
    expression::{self, Elements, Steps, text},
    rule, stateful,
};

/// `NFNL_SUBSYS_NFTABLES << 8`
pub(super) const NFTABLES: u16 = 10 << 8;
pub(super) const GET_CHAIN: u16 = NFTABLES | 4;
pub(super) const GET_RULE: u16 = NFTABLES | 7;
pub(super) const GET_SET_ELEMENTS: u16 = NFTABLES | 13;

pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
const NF_DROP: u32 = 0;
const NFTA_HOOK_HOOKNUM: u16 = 1;

pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;

pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

pub(super) const NFPROTO_UNSPEC: u8 = 0;
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

/// Size of `struct nfgenmsg`, bytes.
const NFGENMSG_LEN: usize = 4;

/// Time for all requests: a node of a large cluster has tens of thousands of rules.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of rules that are evaluated again once their set is read.
const MAX_WAITING: usize = 256;

/// Adds the rules of the calling thread's namespace to what `reader` has.
pub(super) fn read(reader: Reader) -> io::Result<Firewall> {
    let mut link = Link::open(NETFILTER, Instant::now() + TIMEOUT)?;
    let mut ruleset = Ruleset { reader, ..Ruleset::default() };
    link.dump(GET_CHAIN, &[&[NFPROTO_UNSPEC, 0, 0, 0]], &mut |body| ruleset.chain(body))?;
    link.dump(GET_RULE, &[&[NFPROTO_UNSPEC, 0, 0, 0]], &mut |body| ruleset.rule(body))?;
    for (table, set) in ruleset.needed_sets() {
        let mut which = Attributes::default();
        for (kind, name) in [(NFTA_SET_ELEM_LIST_TABLE, &table.1), (NFTA_SET_ELEM_LIST_SET, &set)] {
            which.put(kind, &[name.as_bytes(), b"\0"].concat());
        }
        ruleset.sets.entry(table.clone()).or_default().entry(set).or_default();
        link.dump(GET_SET_ELEMENTS, &[&[table.0, 0, 0, 0], which.bytes()], &mut |body| {
            ruleset.elements(body)
        })?;
    }
    ruleset.finish()
}

/// Whether a rule distinguishes packets of established connections from others by the conntrack state.
pub(super) fn is_stateful() -> io::Result<bool> {
    let mut link = Link::open(NETFILTER, Instant::now() + TIMEOUT)?;
    let mut found = false;
    link.dump(GET_RULE, &[&[NFPROTO_UNSPEC, 0, 0, 0]], &mut |body| {
        // The rest of the dump has to be received, but not to be parsed.
        if !found {
            found = rule_is_stateful(body)?;
        }
        Ok(())
    })?;
    Ok(found)
}

fn rule_is_stateful(body: &[u8]) -> io::Result<bool> {
    let (family, bytes) = split(body)?;
    if family_name(family).is_none() {
        return Ok(false);
    }
    for attribute in attributes(bytes) {
        if let (NFTA_RULE_EXPRESSIONS, expressions) = attribute? {
            return stateful::tests_state(expressions);
        }
    }
    Ok(false)
}

/// The same as [`read`], from the bodies of recorded messages.
#[cfg(test)]
pub(super) fn of_messages(
    chains: &[Vec<u8>],
    rules: &[Vec<u8>],
    elements: &[Vec<u8>],
) -> io::Result<Firewall> {
    let mut ruleset = Ruleset::default();
    chains.iter().try_for_each(|body| ruleset.chain(body))?;
    rules.iter().try_for_each(|body| ruleset.rule(body))?;
    let sets = ruleset.needed_sets();
    assert!(sets.len() <= elements.len(), "sets of the rules: {sets:?}");
    elements.iter().try_for_each(|body| ruleset.elements(body))?;
    ruleset.finish()
}

/// Family and name of a table.
type Table = (u8, String);

#[derive(Default)]
struct Ruleset {
    reader: Reader,
    sets: BTreeMap<Table, BTreeMap<String, Elements>>,
    /// Bodies of the rule messages whose set was not read yet, with the set that each rule needs.
    waiting: Vec<(Vec<u8>, (Table, String))>,
}

impl Ruleset {
    fn chain(&mut self, body: &[u8]) -> io::Result<()> {
        let (family, bytes) = split(body)?;
        let (mut table, mut name, mut kind, mut hook, mut drops) = Default::default();
        for attribute in attributes(bytes) {
            match attribute? {
                (NFTA_CHAIN_TABLE, payload) => table = text(payload),
                (NFTA_CHAIN_NAME, payload) => name = text(payload),
                (NFTA_CHAIN_TYPE, payload) => kind = text(payload),
                (NFTA_CHAIN_HOOK, payload) => hook = hook_of(payload)?,
                (NFTA_CHAIN_POLICY, payload) => {
                    drops = u32::from_be_bytes(leading(payload)?) == NF_DROP;
                }
                _ => {}
            }
        }
        if let (Some(family), Some(hook)) = (family_name(family), hook) {
            self.reader.base(Chain { family, table, name }, hook, &kind, drops);
        }
        Ok(())
    }

    fn rule(&mut self, body: &[u8]) -> io::Result<()> {
        let (number, bytes) = split(body)?;
        let Some(family) = family_name(number) else { return Ok(()) };
        let (mut table, mut name, mut handle, mut expressions) = Default::default();
        for attribute in attributes(bytes) {
            match attribute? {
                (NFTA_RULE_TABLE, payload) => table = text(payload),
                (NFTA_RULE_CHAIN, payload) => name = text(payload),
                (NFTA_RULE_HANDLE, payload) => handle = u64::from_be_bytes(leading(payload)?),
                (NFTA_RULE_EXPRESSIONS, payload) => expressions = payload,
                _ => {}
            }
        }
        let key = (number, table);
        let sets = self.sets.entry(key.clone()).or_default();
        match expression::steps(number, expressions, sets)? {
            Steps::Known(steps) => {
                if let Some(effect) = rule::effect(steps) {
                    let chain = Chain { family, table: key.1, name };
                    self.reader.rule(RulePlace { chain, handle }, effect);
                }
            }
            Steps::NeedsSet(set) if self.waiting.len() < MAX_WAITING => {
                self.waiting.push((body.to_vec(), (key, set)));
            }
            Steps::NeedsSet(_) => {}
        }
        Ok(())
    }

    /// `NEWSETELEM`; a large set is sent in several messages.
    fn elements(&mut self, body: &[u8]) -> io::Result<()> {
        let (family, bytes) = split(body)?;
        let (mut table, mut set, mut list) = Default::default();
        for attribute in attributes(bytes) {
            match attribute? {
                (NFTA_SET_ELEM_LIST_TABLE, payload) => table = text(payload),
                (NFTA_SET_ELEM_LIST_SET, payload) => set = text(payload),
                (NFTA_SET_ELEM_LIST_ELEMENTS, payload) => list = expression::elements(payload)?,
                _ => {}
            }
        }
        self.sets.entry((family, table)).or_default().entry(set).or_default().extend(list);
        Ok(())
    }

    fn needed_sets(&self) -> BTreeSet<(Table, String)> {
        self.waiting.iter().map(|(_, set)| set.clone()).collect()
    }

    fn finish(mut self) -> io::Result<Firewall> {
        for (body, _) in std::mem::take(&mut self.waiting) {
            self.rule(&body)?;
        }
        Ok(self.reader.finish())
    }
}

/// The family of `struct nfgenmsg`, and what follows it.
pub(super) fn split(body: &[u8]) -> io::Result<(u8, &[u8])> {
    let (fixed, rest) =
        body.split_at_checked(NFGENMSG_LEN).ok_or_else(|| malformed("missing nfgenmsg"))?;
    Ok((fixed[0], rest))
}

/// The name of a family whose rules can match TCP connections; `None` for the others.
pub(super) fn family_name(family: u8) -> Option<&'static str> {
    match family {
        NFPROTO_INET => Some("inet"),
        NFPROTO_IPV4 => Some("ip"),
        NFPROTO_IPV6 => Some("ip6"),
        _ => None,
    }
}

pub(super) fn hook_of(attribute: &[u8]) -> io::Result<Option<Hook>> {
    for inner in attributes(attribute) {
        if let (NFTA_HOOK_HOOKNUM, payload) = inner? {
            let number = u32::from_be_bytes(leading(payload)?) as usize;
            return Ok(Hook::ALL.get(number).copied());
        }
    }
    Ok(None)
}
