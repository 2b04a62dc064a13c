//! What a namespace's rules do with packets in conntrack state INVALID, and where they masquerade: the
//! rules of nftables, those of iptables-nft among them.

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
#[cfg(test)]
mod tests;
mod text;
mod xtables;

/// Those of the calling thread's namespace; `None` where we may not read them.
pub(super) fn read() -> Option<Firewall> {
    // A question would load the module.
    if !Path::new("/sys/module/nf_tables").exists() {
        return Some(Firewall::default());
    }
    netlink::read().ok()
}

/// Those that `nft -a list ruleset` printed.
pub fn parse(text: &str) -> Firewall {
    text::parse(text)
}

/// The tables of the older iptables in the calling thread's namespace.
pub(super) fn legacy_tables() -> Vec<String> {
    legacy_in(Path::new("/proc/thread-self/net"))
}

/// Those that a copy of `/proc/net` names.
pub(super) fn legacy_in(net: &Path) -> Vec<String> {
    let files = [("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")];
    let tables = files.map(|(tool, file)| {
        let names = fs::read_to_string(net.join(file)).unwrap_or_default();
        names.lines().map(|name| format!("{tool} {name}")).collect::<Vec<_>>()
    });
    tables.concat()
}

/// Rules as they come, before it is known what leads to their chains.
#[derive(Default)]
struct Reader {
    /// Base chains of type `filter` or `route`; INVALID packets pass by those of type `nat`.
    bases: BTreeMap<Chain, Hook>,
    /// By the chain that is jumped to.
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
