//! What a network namespace's nftables rules, including those of iptables-nft, do with packets in conntrack
//! state INVALID, and which rules masquerade.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use rsttrace_model::firewall::{Chain, Firewall, Hook, InvalidRule, Masquerade, RulePlace};
use rule::Effect;

mod expression;
mod netlink;
mod rule;
mod stateful;
#[cfg(test)]
mod tests;
mod text;
mod xtables;

/// The rules of the calling thread's namespace; `None` where they cannot be read.
pub(super) fn read() -> Option<Firewall> {
    // A netlink request would load the module.
    if !Path::new("/sys/module/nf_tables").exists() {
        return Some(Firewall::default());
    }
    netlink::read().ok()
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

/// The iptables-legacy tables of the calling thread's namespace.
pub(super) fn legacy_tables() -> Vec<String> {
    legacy_in(Path::new("/proc/thread-self/net"))
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
    fn base(&mut self, chain: Chain, hook: Hook, kind: &str) {
        match kind {
            "nat" => self.found.translates = true,
            _ => drop(self.bases.insert(chain, hook)),
        }
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
