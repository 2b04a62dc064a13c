//! Follows chains from their hooks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use rsttrace_model::firewall::{Chain, Hook, Rejecting, RulePlace};

use super::{Part, Verdict};

/// The kernel's limit of nested jumps (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;

/// A rule whose parts are known, or whose expressions are evaluated when a packet reaches it.
pub enum Body {
    Parts(Vec<Part>),
    Expressions(Vec<u8>),
}

pub struct Rule {
    pub at: RulePlace,
    pub comment: Option<String>,
    pub body: Body,
}

/// Evaluates a rule of nftables.
type Evaluate<'a> = &'a mut dyn FnMut(&Rule) -> io::Result<Vec<Part>>;

#[derive(Default)]
pub struct Rules {
    /// Base chains of type `filter` and `route`: those of type `nat` do not reject.
    pub bases: Vec<(Hook, Chain)>,
    pub chains: BTreeMap<Chain, Vec<Rule>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Continues,
    /// No later rule of this hook's base chain sees the packet.
    Ends,
}

struct Walk<'a> {
    rules: &'a Rules,
    evaluate: Evaluate<'a>,
    seen: BTreeSet<Chain>,
    found: Vec<Rejecting>,
}

impl Rules {
    pub fn add(&mut self, rule: Rule) {
        self.chains.entry(rule.at.chain.clone()).or_default().push(rule);
    }

    /// The rules that can reject; each is named once.
    pub fn rejecting(&self, evaluate: Evaluate<'_>) -> Vec<Rejecting> {
        let mut bases: Vec<_> = self.bases.iter().collect();
        bases.sort();
        let mut walk = Walk { rules: self, evaluate, seen: BTreeSet::new(), found: Vec::new() };
        for (_, chain) in bases {
            walk.seen.clear();
            walk.chain(chain, true, None, 0);
        }
        let mut list: Vec<Rejecting> = Vec::new();
        for it in walk.found {
            if !list.iter().any(|other| (&other.at, &other.comment) == (&it.at, &it.comment)) {
                list.push(it);
            }
        }
        list
    }
}

impl Walk<'_> {
    /// `because` is the comment of the map element that led here.
    fn chain(
        &mut self,
        chain: &Chain,
        is_certain: bool,
        because: Option<&str>,
        depth: usize,
    ) -> Then {
        if depth > DEEPEST || !self.seen.insert(chain.clone()) {
            return Then::Continues;
        }
        let rules = self.rules.chains.get(chain).map(Vec::as_slice).unwrap_or_default();
        for rule in rules {
            let parts = match &rule.body {
                Body::Parts(parts) => parts.clone(),
                // What cannot be evaluated is not claimed.
                Body::Expressions(_) => (self.evaluate)(rule).unwrap_or_default(),
            };
            // Of the rule alone: whether every packet to this destination matches.
            let mut always = true;
            let mut comment = rule.comment.clone();
            let mut because = because.map(ToOwned::to_owned);
            for part in parts {
                match part {
                    Part::Test(Some(true)) => {}
                    Part::Test(Some(false)) => break,
                    Part::Test(None) => always = false,
                    Part::Comment(text) => comment = Some(text),
                    Part::Because(text) => because = Some(text),
                    Part::Reject(answer) => {
                        self.found.push(Rejecting {
                            at: rule.at.clone(),
                            answer,
                            comment: because.or(comment),
                            is_certain: is_certain && always,
                        });
                        if always {
                            return Then::Ends;
                        }
                        break;
                    }
                    Part::Verdict(Verdict::Ends) if always => return Then::Ends,
                    Part::Verdict(Verdict::Returns) if always => return Then::Continues,
                    Part::Verdict(Verdict::Ends | Verdict::Returns) => break,
                    Part::Verdict(Verdict::Jump(ref name) | Verdict::Goto(ref name)) => {
                        let to = Chain { name: name.clone(), ..chain.clone() };
                        let because = because.as_deref();
                        let then = self.chain(&to, is_certain && always, because, depth + 1);
                        if always && then == Then::Ends {
                            return Then::Ends;
                        }
                        if always && matches!(part, Part::Verdict(Verdict::Goto(_))) {
                            return Then::Continues;
                        }
                        break;
                    }
                }
            }
        }
        Then::Continues
    }
}
