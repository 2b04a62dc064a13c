//! What a network namespace's rules of nftables (those of iptables-nft included) and of iptables-legacy do with
//! packets in conntrack state INVALID, and which rules masquerade.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    sync::OnceLock,
};

use rsttrace_model::firewall::{
    Chain, Firewall, Hook, InvalidRule, Masquerade, Policy, Rejecting, RulePlace,
};
use rule::Effect;

use super::Host;

mod expression;
mod legacy;
mod netlink;
mod rejecting;
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
    if !has_nf_tables() {
        return (Some(reader.finish()), unread);
    }
    (netlink::read(reader).ok(), unread)
}

/// Whether a filter rule of the calling thread's namespace distinguishes packets with a conntrack entry from those without;
/// `None` where the rules cannot be read.
pub(super) fn is_stateful() -> Option<bool> {
    // Whether the rules of iptables-legacy test the state is not read.
    let without_legacy =
        || legacy_in(Path::new("/proc/thread-self/net")).is_empty().then_some(false);
    if !has_nf_tables() {
        return without_legacy();
    }
    match netlink::is_stateful() {
        Ok(true) => Some(true),
        Ok(false) => without_legacy(),
        Err(_) => None,
    }
}

/// Whether nf_tables is loaded or built in. A kernel that has it built in shows no directory of the module.
pub(super) fn has_nf_tables() -> bool {
    static IS_BUILT_IN: OnceLock<bool> = OnceLock::new();
    let is_built_in = || {
        let symbols = fs::File::open("/proc/kallsyms").map(BufReader::new);
        let mut lines = symbols.into_iter().flat_map(BufRead::lines).map_while(Result::ok);
        // Behind a symbol of a module comes the module's name.
        lines.any(|line| line.ends_with(" nft_do_chain"))
    };
    Path::new("/sys/module/nf_tables").exists() || *IS_BUILT_IN.get_or_init(is_built_in)
}

/// The rules of a network namespace that can answer a TCP packet to this address and port with a reset or an ICMP
/// error, in the order of their hooks. Conditions that do not depend on the destination may or may not hold
/// ([`Rejecting::is_certain`]). `None` where the namespace cannot be entered, or its rules cannot be read.
///
/// Reads all rules of the namespace, which takes a second on a node of a large cluster.
#[must_use]
pub fn rejecting(host: &Host, netns: u32, dst: SocketAddr) -> Option<Vec<Rejecting>> {
    host.enter(netns, || rejecting::read(dst).ok()).flatten()
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
