//! What decoding needs from the running kernel: its tick rate, its symbols, and its reset reasons.

use std::{cell::RefCell, collections::BTreeMap, path::Path};

use rsttrace_core::decode::Kernel;

use super::symbols::KernelSymbols;

/// The data of this kernel that decoding needs.
pub struct RunningKernel {
    /// Jiffies per second.
    hz: u64,
    /// Loaded in the background, because loading takes a while and attaching does not need it.
    symbols: SymbolTable,
    /// Addresses of stacks since the last check that may belong to other modules by now.
    passed: RefCell<Passed>,
    /// Modules that were loaded when the symbols were read.
    modules: Vec<String>,
    reasons: BTreeMap<u32, String>,
}

#[derive(Default)]
struct Passed {
    /// Modules, each with the highest address that was attributed to it.
    modules: BTreeMap<String, u64>,
    /// Whether an address belonged to no known function.
    unknown: bool,
}

/// Kernel symbols, which take a while to read.
pub enum SymbolTable {
    Loading(std::thread::JoinHandle<std::io::Result<KernelSymbols>>),
    Loaded(KernelSymbols),
    Unavailable,
}

impl SymbolTable {
    /// Starts loading the symbols.
    pub fn start() -> Self {
        Self::Loading(std::thread::spawn(|| KernelSymbols::load(Path::new("/"))))
    }

    /// Name and address of each loaded module. A line of `/proc/modules` is
    /// `ip_vs 258048 3 ip_vs_rr, Live 0xffffffffc0a00000`; size and users are left out because they change.
    fn modules() -> Vec<String> {
        let text = std::fs::read_to_string("/proc/modules").unwrap_or_default();
        let name_and_address = |line: &str| {
            let mut words = line.split_whitespace();
            Some(format!("{} {}", words.next()?, words.nth(4)?))
        };
        text.lines().filter_map(name_and_address).collect()
    }

    /// Waits until the symbols are loaded.
    pub fn wait(self) -> Self {
        match self {
            Self::Loading(thread) => match thread.join() {
                Ok(Ok(symbols)) => Self::Loaded(symbols),
                _ => Self::Unavailable,
            },
            done => done,
        }
    }

    /// The symbols, if they are loaded.
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

    /// Waits until the symbols are loaded, as decoding needs them for function names.
    pub fn wait_for_symbols(&mut self) {
        let loading = std::mem::replace(&mut self.symbols, SymbolTable::Unavailable);
        self.symbols = loading.wait();
    }

    /// Reloads the symbols if a stack went through a module that has another address now, or through an
    /// unknown address after the list of modules changed. Returns whether the symbols were reloaded.
    /// Loading takes a while, so a module that has not moved does not cause it. Neither does a module that
    /// was unloaded: the loaded symbols still name the functions of its last stacks.
    pub fn take_new_modules(&mut self) -> bool {
        let passed = self.passed.take();
        if passed.modules.is_empty() && !passed.unknown {
            return false;
        }
        let now = SymbolTable::modules();
        // The end of a function is not known, so addresses after the last function of a module are
        // attributed to that function, until another module is loaded there.
        let moved = |(name, highest): (&String, &u64)| {
            let Some(current) = address_of(&now, name) else { return false };
            let is_new = |module: &&String| !self.modules.contains(module);
            let between =
                |new: u64| parse_address(current).is_some_and(|own| own < new) && new <= *highest;
            Some(current) != address_of(&self.modules, name)
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

/// The address of a module in a list of names and addresses.
fn address_of<'a>(modules: &'a [String], name: &str) -> Option<&'a str> {
    modules.iter().find_map(|module| module.strip_prefix(name)?.strip_prefix(' '))
}

fn parse_address(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The address in an entry of such a list.
fn base_of(module: &str) -> Option<u64> {
    parse_address(module.split_once(' ')?.1)
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
