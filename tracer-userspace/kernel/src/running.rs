//! What decoding needs to know of the running kernel: its tick, its symbols, its names for reasons.

use std::{cell::RefCell, collections::BTreeMap, path::Path};

use rsttrace_core::decode::Kernel;

use super::symbols::KernelSymbols;

/// What decoding needs to know of this kernel.
pub struct RunningKernel {
    /// Jiffies per second.
    hz: u64,
    /// Loaded in the background: it takes a while and is not needed for attaching.
    symbols: SymbolTable,
    /// What stacks passed since the last look that may be others by now.
    passed: RefCell<Passed>,
    /// What was loaded when the symbols were read.
    modules: Vec<String>,
    reasons: BTreeMap<u32, String>,
}

#[derive(Default)]
struct Passed {
    /// Modules, each with the highest address that was taken for its own.
    modules: BTreeMap<String, u64>,
    /// An address that no known function holds.
    unknown: bool,
}

/// Kernel symbols, which take a while to read.
pub enum SymbolTable {
    Loading(std::thread::JoinHandle<std::io::Result<KernelSymbols>>),
    Loaded(KernelSymbols),
    Unavailable,
}

impl SymbolTable {
    /// Starts reading them.
    pub fn start() -> Self {
        Self::Loading(std::thread::spawn(|| KernelSymbols::load(Path::new("/"))))
    }

    /// What is loaded now, and where: `ip_vs 258048 3 ip_vs_rr, Live 0xffffffffc0a00000`, without the
    /// size and the users, which change.
    fn modules() -> Vec<String> {
        let text = std::fs::read_to_string("/proc/modules").unwrap_or_default();
        let name_and_place = |line: &str| {
            let mut words = line.split_whitespace();
            Some(format!("{} {}", words.next()?, words.nth(4)?))
        };
        text.lines().filter_map(name_and_place).collect()
    }

    /// Waits until they are read.
    pub fn wait(self) -> Self {
        match self {
            Self::Loading(thread) => match thread.join() {
                Ok(Ok(symbols)) => Self::Loaded(symbols),
                _ => Self::Unavailable,
            },
            done => done,
        }
    }

    /// The table, if it is read.
    pub fn get(&self) -> Option<&KernelSymbols> {
        match self {
            Self::Loaded(symbols) => Some(symbols),
            _ => None,
        }
    }
}

impl RunningKernel {
    /// `reasons` are the values and full names of `enum sk_rst_reason`.
    pub fn new(hz: u64, symbols: SymbolTable, reasons: BTreeMap<u32, String>) -> Self {
        Self { hz, symbols, passed: RefCell::default(), modules: SymbolTable::modules(), reasons }
    }

    /// Decoding names functions, so it has to wait for the table.
    pub fn wait_for_symbols(&mut self) {
        let loading = std::mem::replace(&mut self.symbols, SymbolTable::Unavailable);
        self.symbols = loading.wait();
    }

    /// Reads the symbols anew when a stack led into a module that is elsewhere now, or into nothing known
    /// and modules have come; whether it did. Reading takes a while, so a module that has not moved does
    /// not ask for it; nor does one that has gone, whose last stacks the symbols at hand still name.
    pub fn take_new_modules(&mut self) -> bool {
        let passed = self.passed.take();
        if passed.modules.is_empty() && !passed.unknown {
            return false;
        }
        let now = SymbolTable::modules();
        // A function's end is not known, so what lies beyond a module's last one is taken for it: until
        // another module is loaded there.
        let moved = |(name, highest): (&String, &u64)| {
            let Some(place) = place_of(&now, name) else { return false };
            let is_new = |module: &&String| !self.modules.contains(module);
            let between = |new: u64| address(place).is_some_and(|own| own < new) && new <= *highest;
            Some(place) != place_of(&self.modules, name)
                || now.iter().filter(is_new).filter_map(|module| base_of(module)).any(between)
        };
        let unknown = passed.unknown && now != self.modules;
        if !unknown && !passed.modules.iter().any(moved) {
            return false;
        }
        self.modules = now;
        self.symbols = SymbolTable::start().wait();
        true
    }
}

/// Where a module is, in a list of names and places.
fn place_of<'a>(modules: &'a [String], name: &str) -> Option<&'a str> {
    modules.iter().find_map(|module| module.strip_prefix(name)?.strip_prefix(' '))
}

fn address(place: &str) -> Option<u64> {
    u64::from_str_radix(place.strip_prefix("0x")?, 16).ok()
}

/// Where a module of such a list begins.
fn base_of(module: &str) -> Option<u64> {
    address(module.split_once(' ')?.1)
}

impl Kernel for RunningKernel {
    fn hz(&self) -> u64 {
        self.hz
    }
    fn symbol(&self, address: u64) -> Option<&str> {
        let function = self.symbols.get()?.lookup(address);
        let mut passed = self.passed.borrow_mut();
        match function.map(|function| function.module) {
            Some(Some(module)) => match passed.modules.get_mut(module) {
                Some(highest) => *highest = address.max(*highest),
                None => {
                    passed.modules.insert(module.to_owned(), address);
                }
            },
            Some(None) => {}
            None => passed.unknown = true,
        }
        function.map(|function| function.name)
    }
    fn reset_reason(&self, value: u32) -> Option<&str> {
        let name = self.reasons.get(&value)?;
        Some(name.strip_prefix("SK_RST_REASON_").unwrap_or(name))
    }
}
