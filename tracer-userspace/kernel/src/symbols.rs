//! Kernel symbols: names for stack addresses, addresses for names.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// No function is longer, so an address this far behind a symbol belongs to something unnamed.
const LONGEST_FUNCTION: u64 = 1 << 20;

/// `/proc/kallsyms`, read once.
///
/// There are more than 100,000 symbols and the first start in an emulated machine should not take
/// seconds: the file is kept as it is and the index holds positions in it.
pub struct KernelSymbols {
    text: Vec<u8>,
    /// Sorted by address; symbols of one address stay in the file's order.
    symbols: Vec<Symbol>,
    restricted: bool,
}

#[derive(Clone, Copy)]
struct Symbol {
    address: u64,
    /// Where the name begins in the text.
    start: u32,
    len: u16,
    is_code: bool,
    in_module: bool,
}

/// The function that holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'a> {
    pub name: &'a str,
    /// Its place may have been another function's when the symbols were read: modules come and go.
    pub module: Option<&'a str>,
}

impl KernelSymbols {
    /// Reads `<root>/proc/kallsyms`; `root` is `/` but in tests.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(root: &Path) -> io::Result<Self> {
        Self::read(File::open(root.join("proc/kallsyms"))?)
    }

    /// Reads text of the form of `/proc/kallsyms`. Lines of another form are skipped.
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
        // The kernel shows every address as 0 to readers whom it does not trust.
        let restricted = symbols.iter().all(|symbol| symbol.address == 0);
        symbols.sort_by_key(|symbol| symbol.address);
        Ok(Self { text, symbols, restricted })
    }

    /// Whether the kernel withholds addresses (`kernel.kptr_restrict`, or no `CAP_SYSLOG`); then
    /// there are names but no answer to any question here.
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
        // Of several names for one address the first is as good as any, but data is no function.
        let symbol = before
            .iter()
            .rev()
            .take_while(|s| s.address == nearest)
            .filter(|s| s.is_code)
            .last()?;
        let module = if symbol.in_module { self.module(symbol) } else { None };
        Some(Function { name: self.name(symbol)?, module })
    }

    /// The address of a symbol of any type. `None` if it is absent, withheld, or if several
    /// symbols of this name have different addresses: a wrong address would mislead quietly.
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

    /// What stands in brackets behind the name.
    fn module(&self, symbol: &Symbol) -> Option<&str> {
        let behind = self.text.get(symbol.start as usize + usize::from(symbol.len)..)?;
        let line = behind.split(|byte| *byte == b'\n').next()?;
        let module = line.trim_ascii().strip_prefix(b"[")?.strip_suffix(b"]")?;
        std::str::from_utf8(module).ok()
    }
}

impl Symbol {
    /// Reads `ffffffff81000000 T name` with an optional tab and `[module]`. `start` is the line's
    /// position in the text.
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
    fn data_and_far_away_addresses_belong_to_no_function() {
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
    fn withheld_addresses_answer_nothing() {
        let symbols = symbols("0000000000000000 T _stext\n0000000000000000 t tcp_done\n");
        assert!(symbols.restricted());
        assert_eq!(name(&symbols, 0), None);
        assert_eq!(symbols.address("tcp_done"), None);
    }

    #[test]
    fn lines_of_another_form_are_skipped() {
        let symbols = symbols(
            "\n\nffffffff81000000\nffffffff81000000 T\nffffffff81000000 T \nxyz T a\n\
             10000000000000000 T b\n1 TT c\nffffffff81000000 T good",
        );
        assert_eq!(symbols.symbols.len(), 1);
        assert_eq!(symbols.address("good"), Some(0xffff_ffff_8100_0000));
    }
}
