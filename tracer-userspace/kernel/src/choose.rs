//! Plans the attachment: for each signal the best way that this kernel accepts, and why a better one is not
//! used.

use std::collections::BTreeMap;

use anyhow::Result;
use rsttrace_core::event::SignalCoverage;

use super::{
    facts::Facts,
    manifest::{Manifest, Program},
    signal::{AttachOption, Signal},
};

/// Attaches programs to the kernel, or only checks whether it could.
pub trait Hooks {
    /// # Errors
    /// The reason, as a clause that can follow "because".
    fn attach(&mut self, program: &Program) -> Result<()>;
}

/// A program that could not be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub program: String,
    pub is_kprobe: bool,
    pub why: String,
}

/// Why a way is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// This kernel lacks a fact (see [`crate::manifest`]).
    Fact(&'static str),
    /// Its cost is too high on a kernel with kprobes, where the module of the better way is not loaded yet.
    KprobesExist,
    /// None of this hook's programs could be attached.
    Hook(&'static str, Vec<Refused>),
}

/// What was decided for one signal.
#[derive(Clone)]
pub struct Choice {
    pub signal: &'static Signal,
    /// The way in use, and the programs attached to its hooks.
    pub taken: Option<(&'static AttachOption, Vec<Program>)>,
    /// The better ways, or all of them if none is in use, and why each is not used.
    pub passed: Vec<(&'static AttachOption, WhyNot)>,
}

impl Choice {
    /// As events carry it. `is_absent` returns whether a module is neither loaded nor built in.
    pub fn coverage(&self, is_absent: impl Fn(&str) -> bool) -> SignalCoverage {
        let names = |programs: &[Program]| {
            programs.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let blind = match &self.taken {
            Some((way, _)) => way.blind.map(str::to_owned),
            None => Some(self.signal.unseen(is_absent)),
        };
        SignalCoverage {
            id: self.signal.id.into(),
            way: self.taken.as_ref().map(|(_, programs)| names(programs)),
            blind,
            attaching: false,
        }
    }
}

/// Tries the ways of each signal in order, and each program once.
pub struct AttachPlanner<'a, H> {
    pub hooks: H,
    manifest: &'a Manifest,
    facts: &'a Facts,
    /// Whether kprobes are used at all.
    kprobes: bool,
    /// Whether a module is neither loaded nor built in.
    is_absent: fn(&str) -> bool,
    /// The program attached to each hook tried so far, or the refused ones.
    tried: BTreeMap<&'static str, Result<Program, Vec<Refused>>>,
    /// Every program that was refused, also where another one of its hook was attached.
    pub refused: Vec<Refused>,
}

impl<'a, H: Hooks> AttachPlanner<'a, H> {
    pub fn new(
        hooks: H,
        manifest: &'a Manifest,
        facts: &'a Facts,
        kprobes: bool,
        is_absent: fn(&str) -> bool,
    ) -> Self {
        let (tried, refused) = (BTreeMap::new(), Vec::new());
        Self { hooks, manifest, facts, kprobes, is_absent, tried, refused }
    }

    /// Takes the first way of a signal whose hooks all attach.
    pub fn signal(&mut self, signal: &'static Signal) -> Choice {
        let mut passed = Vec::new();
        for way in signal.ways {
            // With the module loaded, a function that cannot be hooked (inlined, `.isra`, blacklisted) never will be.
            let is_hopeless = !passed.is_empty()
                && passed.iter().all(|(_, why)| matches!(why, WhyNot::Hook(..)))
                && !signal.module.is_some_and(self.is_absent);
            match self.way(way, is_hopeless) {
                Ok(programs) => return Choice { signal, taken: Some((way, programs)), passed },
                Err(why) => passed.push((way, why)),
            }
        }
        Choice { signal, taken: None, passed }
    }

    /// `is_hopeless`: no better way of its signal can ever be attached to this kernel.
    fn way(
        &mut self,
        way: &'static AttachOption,
        is_hopeless: bool,
    ) -> Result<Vec<Program>, WhyNot> {
        if let Some(fact) = way.needs
            && self.facts.get(fact).is_none()
        {
            return Err(WhyNot::Fact(fact));
        }
        if way.without_kprobes && self.kprobes && !is_hopeless {
            return Err(WhyNot::KprobesExist);
        }
        way.hooks
            .iter()
            .map(|hook| self.hook(hook).map_err(|refused| WhyNot::Hook(hook, refused)))
            .collect()
    }

    fn hook(&mut self, hook: &'static str) -> Result<Program, Vec<Refused>> {
        if let Some(known) = self.tried.get(hook) {
            return known.clone();
        }
        let mut candidates: Vec<&Program> =
            self.manifest.programs.iter().filter(|program| program.hook == hook).collect();
        candidates.sort_by_key(|program| program.way);
        let mut refused = Vec::new();
        let mut attached = None;
        for program in candidates {
            match self.hooks.attach(program) {
                Ok(()) => {
                    attached = Some(program.clone());
                    break;
                }
                Err(error) => refused.push(Refused {
                    program: program.name.clone(),
                    is_kprobe: program.way.is_kprobe(),
                    why: format!("{error:#}"),
                }),
            }
        }
        self.refused.extend(refused.iter().cloned());
        let outcome = attached.ok_or(refused);
        self.tried.insert(hook, outcome.clone());
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{manifest::AttachKind, signal};

    /// Accepts every target that is not in `refuses`, and records the programs it was given.
    struct FakeKernel {
        refuses: &'static [&'static str],
        asked: Vec<String>,
    }

    impl Hooks for FakeKernel {
        fn attach(&mut self, program: &Program) -> Result<()> {
            self.asked.push(program.name.clone());
            anyhow::ensure!(!self.refuses.contains(&program.target.as_str()), "refused");
            Ok(())
        }
    }

    fn program(hook: &str, way: AttachKind) -> Program {
        let name = format!("{hook}__{}", way.as_str());
        Program { name, hook: hook.into(), way, target: hook.into() }
    }

    fn manifest() -> Manifest {
        let programs = vec![
            program("inet_sock_set_state", AttachKind::RawTracepoint),
            program("early_drop", AttachKind::Kretprobe),
            program("kfree_skb", AttachKind::RawTracepoint),
            program("nf_ct_delete", AttachKind::Kprobe),
            program("kfree_skb_netfilter", AttachKind::RawTracepoint),
        ];
        Manifest { programs, facts: Vec::new() }
    }

    fn choose(refuses: &'static [&'static str], ids: &[&str]) -> (Vec<Choice>, Vec<String>) {
        choose_with(refuses, ids, |_| false, &Facts::default())
    }

    fn choose_with(
        refuses: &'static [&'static str],
        ids: &[&str],
        is_absent: fn(&str) -> bool,
        facts: &Facts,
    ) -> (Vec<Choice>, Vec<String>) {
        let manifest = manifest();
        let kernel = FakeKernel { refuses, asked: Vec::new() };
        let mut planner = AttachPlanner::new(kernel, &manifest, facts, true, is_absent);
        let signals = signal::ALL.iter().filter(|signal| ids.contains(&signal.id));
        let choices = signals.map(|signal| planner.signal(signal)).collect();
        (choices, planner.hooks.asked)
    }

    #[test]
    fn a_hook_that_two_signals_share_is_attached_once() {
        let (choices, asked) = choose(&[], &["socket_error", "socket_end"]);
        assert!(choices.iter().all(|choice| choice.taken.is_some()));
        assert_eq!(asked, ["inet_sock_set_state__rawtp"]);
    }

    #[test]
    fn a_way_with_a_refused_hook_is_not_used_and_names_that_hook() {
        let (choices, _) = choose(&["early_drop"], &["conntrack_full"]);
        assert!(choices[0].taken.is_none());
        let WhyNot::Hook("early_drop", refused) = &choices[0].passed[0].1 else {
            unreachable!("{:?}", choices[0].passed[0].1)
        };
        assert_eq!(refused[0].why, "refused");
        let blind = choices[0].coverage(|_| false).blind;
        assert_eq!(blind.as_deref(), Some(choices[0].signal.blind));
        let blind = choices[0].coverage(|module| module == "nf_conntrack").blind;
        assert!(blind.is_some_and(|it| it.starts_with("nf_conntrack is not loaded")));
    }

    #[test]
    fn a_costly_way_is_used_where_the_better_functions_can_never_be_hooked() {
        let fact = "VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP";
        let facts = Facts::of_test(fact, 11);
        let taken = |is_absent| {
            let (choices, _) = choose_with(&["early_drop"], &["conntrack_full"], is_absent, &facts);
            choices[0].taken.as_ref().map(|(way, _)| way.hooks)
        };
        assert_eq!(taken(|_| false), Some(&["kfree_skb_netfilter"][..]));
        assert_eq!(taken(|module| module == "nf_conntrack"), None, "it may be loaded later");
    }

    #[test]
    fn a_way_whose_fact_is_missing_is_not_tried() {
        let (choices, asked) = choose(&[], &["ipvs_end"]);
        assert!(choices[0].taken.is_none() && asked.is_empty());
        assert_eq!(choices[0].passed[0].1, WhyNot::Fact("OFFSET_OF_ip_vs_conn_DOT_timer"));
    }
}
