//! What a network namespace's rules of nftables (those of iptables-nft included) and of iptables-legacy do with
//! packets in conntrack state INVALID, and which rules masquerade.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use rsttrace_model::firewall::{Chain, Firewall, Hook, InvalidRule, Masquerade, Policy, RulePlace};
use rule::Effect;

mod expression;
mod legacy;
mod netlink;
mod rule;
mod stateful;
#[cfg(test)]
mod tests;
mod text;
mod xtables;

/// The rules of the calling thread's namespace, `None` where they cannot be read, and the tables of iptables-legacy
/// whose rules could not be read.
pub(super) fn read() -> (Option<Firewall>, Vec<String>) {
    let mut reader = Reader::default();
    // A request for a table that is not listed would load its module.
    let unread: Vec<String> = legacy_in(Path::new("/proc/thread-self/net"))
        .into_iter()
        .filter(|name| legacy::read(name, &mut reader).is_err())
        .collect();
    // A netlink request would load the module.
    if !Path::new("/sys/module/nf_tables").exists() {
        return (Some(reader.finish()), unread);
    }
    (netlink::read(reader).ok(), unread)
}

/// Whether a filter rule of the calling thread's namespace tells packets with a conntrack entry from those without;
/// `None` where the rules cannot be read.
pub(super) fn is_stateful() -> Option<bool> {
    if !Path::new("/sys/module/nf_tables").exists() {
        return legacy_tables().is_empty().then_some(false);
    }
    match netlink::is_stateful() {
        Ok(true) => Some(true),
        Ok(false) => legacy_tables().is_empty().then_some(false),
        Err(_) => None,
    }
}

/// The rules in the output of `nft -a list ruleset`.
pub fn parse(text: &str) -> Firewall {
    text::parse(text)
}

/// The iptables-legacy tables that a copy of `/proc/net` names.
pub(super) fn legacy_in(net: &Path) -> Vec<String> {
    let files = [("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")];
    let tables = files.map(|(tool, file)| {
        let names = fs::read_to_string(net.join(file)).unwrap_or_default();
        names.lines().map(|name| format!("{tool} {name}")).collect::<Vec<_>>()
    });
    tables.concat()
}

/// Collects chains and rules. The hooks of a rule are known only after all chains and jumps were read.
#[derive(Default)]
struct Reader {
    /// Base chains of type `filter` or `route`; INVALID packets skip chains of type `nat`.
    bases: BTreeMap<Chain, Hook>,
    /// The chains that jump to each chain, by jump target.
    jumps: BTreeMap<Chain, BTreeSet<Chain>>,
    found: Firewall,
}

impl Reader {
    fn base(&mut self, chain: Chain, hook: Hook, kind: &str, drops: bool) {
        if kind == "nat" {
            self.found.translates = true;
            return;
        }
        if drops {
            self.found.drop_policies.push(Policy { chain: chain.clone(), hook });
        }
        self.bases.insert(chain, hook);
    }

    fn rule(&mut self, at: RulePlace, effect: Effect) {
        match effect {
            Effect::Answers { answer, narrowed } => {
                let hooks = BTreeSet::new();
                self.found.invalid.push(InvalidRule { at, answer, narrowed, hooks });
            }
            Effect::Masquerades(out) => self.found.masquerades.push(Masquerade { at, out }),
            Effect::Jumps(name) => {
                let to = Chain { name, ..at.chain.clone() };
                self.jumps.entry(to).or_default().insert(at.chain);
            }
        }
    }

    fn finish(self) -> Firewall {
        let Self { bases, jumps, mut found } = self;
        found.invalid.sort_by(|a, b| a.at.cmp(&b.at));
        found.masquerades.sort_by(|a, b| a.at.cmp(&b.at));
        found.drop_policies.sort();
        for rule in &mut found.invalid {
            let mut seen = BTreeSet::from([&rule.at.chain]);
            let mut next = vec![&rule.at.chain];
            while let Some(chain) = next.pop() {
                rule.hooks.extend(bases.get(chain));
                let from = jumps.get(chain).into_iter().flatten();
                next.extend(from.filter(|chain| seen.insert(chain)));
            }
        }
        found
    }
}
