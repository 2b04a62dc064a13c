//! What decoding needs to know of the running kernel: its tick, its symbols, its names for reasons.

use std::{cell::Cell, collections::BTreeMap, path::Path};

use super::symbols::KernelSymbols;
use crate::decode::Kernel;

/// What decoding needs to know of this kernel.
pub struct RunningKernel {
    /// Jiffies per second.
    hz: u64,
    /// Loaded in the background: it takes a while and is not needed for attaching.
    symbols: SymbolTable,
    /// A stack passed a module, or no known function: what is loaded may have changed.
    stale: Cell<bool>,
    /// What was loaded when the symbols were read.
    modules: Vec<String>,
    reasons: BTreeMap<u32, String>,
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
        Self { hz, symbols, stale: Cell::new(false), modules: SymbolTable::modules(), reasons }
    }

    /// Decoding names functions, so it has to wait for the table.
    pub fn wait_for_symbols(&mut self) {
        let loading = std::mem::replace(&mut self.symbols, SymbolTable::Unavailable);
        self.symbols = loading.wait();
    }

    /// Reads the symbols anew when a stack led into modules and they are others now; whether it did.
    pub fn take_new_modules(&mut self) -> bool {
        if !self.stale.take() {
            return false;
        }
        let modules = SymbolTable::modules();
        if modules == self.modules {
            return false;
        }
        self.modules = modules;
        self.symbols = SymbolTable::start().wait();
        true
    }
}

impl Kernel for RunningKernel {
    fn hz(&self) -> u64 {
        self.hz
    }
    fn symbol(&self, address: u64) -> Option<&str> {
        let function = self.symbols.get()?.lookup(address);
        if function.is_none_or(|function| function.in_module) {
            self.stale.set(true);
        }
        function.map(|function| function.name)
    }
    fn reset_reason(&self, value: u32) -> Option<&str> {
        let name = self.reasons.get(&value)?;
        Some(name.strip_prefix("SK_RST_REASON_").unwrap_or(name))
    }
}
