//! What a namespace's rules do with packets in conntrack state INVALID, and where they masquerade: the
//! rules of nftables, those of iptables-nft among them.

mod expression;
mod netlink;
mod rule;
#[cfg(test)]
mod tests;
mod text;
mod xtables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fmt, fs};

use rule::Effect;

pub use rule::{Answer, Interface, Outgoing};

/// The rules of a namespace that concern us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firewall {
    /// There are base chains of type `nat`.
    pub translates: bool,
    /// In the order of their places.
    pub invalid: Vec<InvalidRule>,
    pub masquerades: Vec<Masquerade>,
}

/// Where a rule is. Names are those that its author gave.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RulePlace {
    pub chain: Chain,
    /// With it the rule can be deleted; 0 where it is not known.
    pub handle: u64,
}

impl fmt::Display for RulePlace {
    /// "ip filter KUBE-FORWARD handle 4"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Chain { family, table, name } = &self.chain;
        write!(f, "{family} {table} {name}")?;
        match self.handle {
            0 => Ok(()),
            handle => write!(f, " handle {handle}"),
        }
    }
}

/// A chain of nftables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// `ip`, `ip6` or `inet`
    pub family: &'static str,
    pub table: String,
    pub name: String,
}

/// A rule that lets no INVALID packet pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidRule {
    pub at: RulePlace,
    pub answer: Answer,
    /// It has further conditions.
    pub narrowed: bool,
    /// From where packets come to it; empty where nothing that we follow leads to its chain.
    pub hooks: BTreeSet<Hook>,
}

/// A rule of NAT to the address of the interface that a packet leaves through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    pub at: RulePlace,
    pub out: Outgoing,
}

/// `NF_INET_*`, in the order of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    const ALL: [Self; 5] =
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    pub fn id(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// Those of the calling thread's namespace; `None` where we may not read them.
pub(super) fn read() -> Option<Firewall> {
    // A question would load the module.
    if !Path::new("/sys/module/nf_tables").exists() {
        return Some(Firewall::default());
    }
    netlink::read().ok()
}

/// Those that `nft -a list ruleset` printed.
pub(crate) fn parse(text: &str) -> Firewall {
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
