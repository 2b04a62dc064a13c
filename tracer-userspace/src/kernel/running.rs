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
    /// A stack passed an address of no known function: a module has been loaded since.
    stale: Cell<bool>,
    /// `/proc/modules` when the symbols were read.
    modules: String,
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

    /// What is loaded now; a longer list than at the last look means new functions.
    fn modules() -> String {
        std::fs::read_to_string("/proc/modules").unwrap_or_default()
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

    /// Reads the symbols anew when a stack led into a module that was loaded since; whether it did.
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
        let name = self.symbols.get()?.lookup(address);
        if name.is_none() {
            self.stale.set(true);
        }
        name
    }
    fn reset_reason(&self, value: u32) -> Option<&str> {
        let name = self.reasons.get(&value)?;
        Some(name.strip_prefix("SK_RST_REASON_").unwrap_or(name))
    }
}
