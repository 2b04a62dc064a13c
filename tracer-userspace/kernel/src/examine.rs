//! What can be traced on this machine, for `doctor`: found by attaching the hooks where that is permitted,
//! and otherwise by a dry run.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;
use rsttrace_core::event::SignalCoverage;

use super::{
    attach::{AttachOptions, Kprobes, no_function},
    choose::{AttachPlanner, Choice, Hooks},
    live::OBJECT,
    manifest::{Manifest, Program},
    prepare::{Prepared, StartError, prepare},
    running::SymbolTable,
    signal,
    start::start,
};
use crate::host_access;

/// What was found.
pub struct Examination {
    /// `uname -r` and `uname -m`.
    pub kernel: String,
    pub architecture: String,
    /// `/sys/kernel/btf/vmlinux` exists.
    pub btf: bool,
    pub kprobes: Kprobes,
    /// Tracing started, or why not.
    pub started: Result<(), StartError>,
    /// What was attached, or would probably be attached; empty when the dry run is not possible either.
    pub choices: Vec<Choice>,
    pub look_ups: Vec<SignalCoverage>,
    /// Modules of signals that are neither loaded nor built in.
    pub absent_modules: BTreeSet<&'static str>,
}

/// Attaches everything, records the result, and detaches.
pub fn examine(no_kprobes: bool) -> Examination {
    let kprobes = Kprobes::here(no_kprobes);
    let options = AttachOptions { kprobes, verbose: false, keep_openers: false, only: None };
    let names = function_names();
    let (started, choices) = match start(OBJECT, &options) {
        Ok(started) => (Ok(()), started.attached.choices),
        Err(error) => (Err(error), dry_run(kprobes, &names)),
    };
    let uname = rustix::system::uname();
    Examination {
        kernel: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        kprobes,
        started,
        choices,
        look_ups: host_access::coverage(),
        absent_modules: absent_modules(&names),
    }
}

/// Functions of the kernel and its modules. Their names are readable even where the addresses are hidden.
fn function_names() -> BTreeSet<String> {
    fs::read_to_string("/proc/kallsyms")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(2).map(str::to_owned))
        .collect()
}

/// A built-in module has no directory in `/sys/module` unless it has parameters, but its functions are
/// listed.
fn absent_modules(names: &BTreeSet<String>) -> BTreeSet<&'static str> {
    let programs = Manifest::from_elf(OBJECT).map(|it| it.programs).unwrap_or_default();
    signal::ALL
        .iter()
        .filter(|signal| {
            let built_in = signal.ways.iter().flat_map(|way| way.hooks).any(|hook| {
                programs
                    .iter()
                    .any(|it| it.hook == *hook && it.way.is_kprobe() && names.contains(&it.target))
            });
            !built_in
        })
        .filter_map(|signal| signal.module)
        .filter(|module| signal::is_absent(module))
        .collect()
}

/// What would probably be attached by a process with permission.
fn dry_run(kprobes: Kprobes, names: &BTreeSet<String>) -> Vec<Choice> {
    let symbols = SymbolTable::start().wait();
    let Ok(Prepared { manifest, facts }) = prepare(OBJECT, symbols.get()) else {
        return Vec::new();
    };
    let dry_run = DryRun { kprobes, names };
    let mut planner =
        AttachPlanner::new(dry_run, &manifest, &facts, kprobes == Kprobes::Use, signal::is_absent);
    signal::ALL.iter().map(|signal| planner.signal(signal)).collect()
}

/// Accepts a kprobe on every function that exists, and every tracepoint.
struct DryRun<'a> {
    kprobes: Kprobes,
    names: &'a BTreeSet<String>,
}

impl Hooks for DryRun<'_> {
    fn attach(&mut self, program: &Program) -> Result<()> {
        if program.way.is_kprobe() {
            self.kprobes.allowed()?;
            if !self.names.contains(&program.target) {
                return Err(no_function(&program.target));
            }
        }
        Ok(())
    }
}
