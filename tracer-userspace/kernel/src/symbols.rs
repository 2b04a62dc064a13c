//! Kernel symbols: names for stack addresses, addresses for names.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// No function is longer, so an address this far after a symbol belongs to code without a symbol.
const LONGEST_FUNCTION: u64 = 1 << 20;

/// `/proc/kallsyms`, read once.
///
/// There are more than 100,000 symbols, and a start on an emulated machine should not take seconds. The file
/// is therefore kept as read, and the index holds positions in it.
pub struct KernelSymbols {
    text: Vec<u8>,
    /// Sorted by address; symbols of one address stay in the file's order.
    symbols: Vec<Symbol>,
    restricted: bool,
}

#[derive(Clone, Copy)]
struct Symbol {
    address: u64,
    /// Position of the name in the text.
    start: u32,
    len: u16,
    is_code: bool,
    in_module: bool,
}

/// The function that holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    pub name: &'a str,
    /// The module of the function. Modules are loaded and unloaded, so the address may have belonged to
    /// another function when the symbols were read.
    pub module: Option<&'a str>,
}

impl KernelSymbols {
    /// Reads `<root>/proc/kallsyms`; `root` is `/` except in tests.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(root: &Path) -> io::Result<Self> {
        Self::read(File::open(root.join("proc/kallsyms"))?)
    }

    /// Reads text in the format of `/proc/kallsyms`. Other lines are skipped.
    ///
    /// # Errors
    /// If the reader fails.
    pub fn read(mut reader: impl Read) -> io::Result<Self> {
        let mut text = Vec::new();
        reader.read_to_end(&mut text)?;
        let mut symbols = Vec::with_capacity(text.len() / 40);
        let mut start = 0;
        for line in text.split(|byte| *byte == b'\n') {
            symbols.extend(Symbol::parse(line, start));
            start += line.len() + 1;
        }
        // The kernel shows every address as 0 to a reader without permission.
        let restricted = symbols.iter().all(|symbol| symbol.address == 0);
        symbols.sort_by_key(|symbol| symbol.address);
        Ok(Self { text, symbols, restricted })
    }

    /// Whether the kernel hides addresses (`kernel.kptr_restrict`, or no `CAP_SYSLOG`). Then names are
    /// known but every look-up here returns `None`.
    pub fn restricted(&self) -> bool {
        self.restricted
    }

    /// The function that holds `address`: the last symbol at or before it, if that is code and
    /// near enough.
    pub fn lookup(&self, address: u64) -> Option<Function<'_>> {
        if self.restricted {
            return None;
        }
        let end = self.symbols.partition_point(|s| s.address <= address);
        let before = self.symbols.get(..end)?;
        let nearest = before.last()?.address;
        if address - nearest >= LONGEST_FUNCTION {
            return None;
        }
        // Any of several names for one address will do, but only code is a function.
        let symbol = before
            .iter()
            .rev()
            .take_while(|s| s.address == nearest)
            .filter(|s| s.is_code)
            .last()?;
        let module = if symbol.in_module { self.module(symbol) } else { None };
        Some(Function { name: self.name(symbol)?, module })
    }

    /// The address of a symbol of any type. `None` if the symbol is missing, if its address is hidden, or if
    /// several symbols of this name have different addresses: a wrong address would go unnoticed.
    pub fn address(&self, name: &str) -> Option<u64> {
        if self.restricted {
            return None;
        }
        let mut addresses = self
            .symbols
            .iter()
            .filter(|symbol| self.bytes(symbol) == Some(name.as_bytes()))
            .map(|symbol| symbol.address);
        let first = addresses.next()?;
        addresses.all(|other| other == first).then_some(first)
    }

    fn bytes(&self, symbol: &Symbol) -> Option<&[u8]> {
        let start = symbol.start as usize;
        self.text.get(start..start + usize::from(symbol.len))
    }

    fn name(&self, symbol: &Symbol) -> Option<&str> {
        std::str::from_utf8(self.bytes(symbol)?).ok()
    }

    /// The module name, which stands in brackets after the symbol's name.
    fn module(&self, symbol: &Symbol) -> Option<&str> {
        let behind = self.text.get(symbol.start as usize + usize::from(symbol.len)..)?;
        let line = behind.split(|byte| *byte == b'\n').next()?;
        let module = line.trim_ascii().strip_prefix(b"[")?.strip_suffix(b"]")?;
        std::str::from_utf8(module).ok()
    }
}

impl Symbol {
    /// Parses `ffffffff81000000 T name`, optionally followed by a tab and `[module]`. `start` is the
    /// position of the line in the text.
    fn parse(line: &[u8], start: usize) -> Option<Self> {
        let digits = line.iter().take_while(|byte| **byte != b' ').count();
        let mut address = 0_u64;
        for digit in line.get(..digits)? {
            let digit = char::from(*digit).to_digit(16)?;
            address = address.checked_mul(16)? | u64::from(digit);
        }
        let [b' ', kind, b' ', name @ ..] = line.get(digits..)? else {
            return None;
        };
        let len = name.iter().take_while(|byte| **byte != b'\t').count();
        Some(Self {
            address,
            start: u32::try_from(start + digits + 3).ok()?,
            len: u16::try_from(len).ok().filter(|len| *len > 0)?,
            is_code: matches!(kind, b't' | b'T' | b'w' | b'W'),
            in_module: len < name.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(text: &str) -> KernelSymbols {
        KernelSymbols::read(text.as_bytes()).expect("a slice can be read")
    }

    fn name(symbols: &KernelSymbols, address: u64) -> Option<&str> {
        symbols.lookup(address).map(|function| function.name)
    }

    const TEXT: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81001000 t tcp_done
ffffffff81000800 W tcp_reset
ffffffff81002000 D jiffies
ffffffff81002000 T etext_alias
ffffffff81003000 d data
ffffffffc0000000 t ip_vs_conn_expire\t[ip_vs]
ffffffffc0000100 t helper\t[ip_vs]
ffffffffc0000200 t helper\t[nf_nat]
";

    #[test]
    fn an_address_belongs_to_the_last_function_at_or_before_it() {
        let symbols = symbols(TEXT);
        assert_eq!(name(&symbols, 0xffff_ffff_8100_0800), Some("tcp_reset"));
        assert_eq!(name(&symbols, 0xffff_ffff_8100_0fff), Some("tcp_reset"));
        assert_eq!(name(&symbols, 0xffff_ffff_8100_1000), Some("tcp_done"));
        assert_eq!(name(&symbols, 0xffff_ffff_c000_0042), Some("ip_vs_conn_expire"));
    }

    #[test]
    fn a_function_of_a_module_names_it() {
        let symbols = symbols(TEXT);
        let module = |address| symbols.lookup(address).and_then(|function| function.module);
        assert_eq!(module(0xffff_ffff_8100_0800), None);
        assert_eq!(module(0xffff_ffff_c000_0042), Some("ip_vs"));
    }

    #[test]
    fn data_and_addresses_far_from_a_symbol_belong_to_no_function() {
        let symbols = symbols(TEXT);
        assert_eq!(name(&symbols, 0xffff_ffff_8100_3008), None);
        assert_eq!(name(&symbols, 0xffff_ffff_c000_0200 + LONGEST_FUNCTION), None);
        assert_eq!(name(&symbols, 0x1000), None);
    }

    #[test]
    fn code_is_preferred_to_data_of_the_same_address() {
        assert_eq!(name(&symbols(TEXT), 0xffff_ffff_8100_2004), Some("etext_alias"));
    }

    #[test]
    fn names_resolve_to_addresses_unless_ambiguous() {
        let symbols = symbols(TEXT);
        assert_eq!(symbols.address("tcp_done"), Some(0xffff_ffff_8100_1000));
        assert_eq!(symbols.address("ip_vs_conn_expire"), Some(0xffff_ffff_c000_0000));
        assert_eq!(symbols.address("data"), Some(0xffff_ffff_8100_3000));
        assert_eq!(symbols.address("helper"), None);
        assert_eq!(symbols.address("tcp"), None);
    }

    #[test]
    fn with_hidden_addresses_no_symbol_is_found() {
        let symbols = symbols("0000000000000000 T _stext\n0000000000000000 t tcp_done\n");
        assert!(symbols.restricted());
        assert_eq!(name(&symbols, 0), None);
        assert_eq!(symbols.address("tcp_done"), None);
    }

    #[test]
    fn lines_in_another_format_are_skipped() {
        let symbols = symbols(
            "\n\nffffffff81000000\nffffffff81000000 T\nffffffff81000000 T \nxyz T a\n\
             10000000000000000 T b\n1 TT c\nffffffff81000000 T good",
        );
        assert_eq!(symbols.symbols.len(), 1);
        assert_eq!(symbols.address("good"), Some(0xffff_ffff_8100_0000));
    }
}
