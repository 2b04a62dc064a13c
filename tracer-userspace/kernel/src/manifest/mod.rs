//! What the eBPF object needs, read from its own symbol table.
//!
//! The object is the manifest. The symbol names of a program state its hook, how it attaches and its target,
//! and the symbol names of its variables state every kernel fact that it needs. A new probe or field
//! therefore changes the eBPF crate only.
//!
//! | symbol | means | absent |
//! |---|---|---|
//! | function `<hook>__<way>` in section `<type>/<target>` | a program to attach | |
//! | `OFFSET_OF_<struct>_DOT_<member>…` | byte offset, `u32` | `u32::MAX` |
//! | `SIZE_OF_<struct>_DOT_<member>…` | byte size, `u32` | `u32::MAX` |
//! | `ARG_OF_<function>_DOT_<type>` | index of the first parameter of that type, `u32` | `u32::MAX` |
//! | `VALUE_OF_<enum>_DOT_<variant>` | value, `u32` | `u32::MAX` |
//! | `HAS_<function>` | 1 if the kernel has it, `u32` | 0 |
//! | `ADDRESS_OF_<symbol>` | kernel address, `u64` | 0 |

mod attach_kind;
mod fact;
#[cfg(test)]
mod tests;

use std::fmt;

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

pub use attach_kind::AttachKind;
pub use fact::{Fact, MemberPath};

/// Everything that an eBPF object needs, sorted by symbol name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub programs: Vec<Program>,
    pub facts: Vec<FactName>,
}

/// One program; several programs of one hook are alternatives or parts of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The symbol, as aya names the program.
    pub name: String,
    pub hook: String,
    pub way: AttachKind,
    /// The tracepoint or kernel function to attach to.
    pub target: String,
}

/// A global variable to be filled in before load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactName {
    pub symbol: String,
    /// In bytes: 8 for an address, else 4.
    pub size: u8,
    pub parsed: Fact,
}

/// Why an eBPF object is not a valid manifest.
#[derive(Debug)]
pub enum ManifestError {
    /// Not a readable ELF file.
    Elf(object::Error),
    /// A symbol does not follow the grammar.
    Symbol { symbol: String, problem: String },
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(_) => f.write_str("the eBPF object is not a readable ELF file"),
            Self::Symbol { symbol, problem } => {
                write!(f, "invalid symbol `{symbol}` in the eBPF object: {problem}")
            }
        }
    }
}

impl std::error::Error for ManifestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Elf(error) => Some(error),
            Self::Symbol { .. } => None,
        }
    }
}

impl From<object::Error> for ManifestError {
    fn from(error: object::Error) -> Self {
        Self::Elf(error)
    }
}

impl Manifest {
    /// Reads an eBPF object.
    ///
    /// # Errors
    /// If the object is not an ELF file, or a program or fact has an invalid name. A symbol that would
    /// never be attached or filled in must not go unnoticed.
    pub fn from_elf(bytes: &[u8]) -> Result<Self, ManifestError> {
        let file = object::File::parse(bytes)?;
        let mut manifest = Self::default();
        for symbol in file.symbols() {
            let Some(section) = symbol.section_index() else {
                continue;
            };
            match symbol.kind() {
                SymbolKind::Text => {
                    let section = file.section_by_index(section)?;
                    manifest.add_function(symbol.name()?, section.name()?)?;
                }
                SymbolKind::Data => manifest.add_variable(symbol.name()?, symbol.size())?,
                _ => {}
            }
        }
        manifest.programs.sort_by(|a, b| a.name.cmp(&b.name));
        manifest.facts.sort_by(|a, b| a.symbol.cmp(&b.symbol));
        Ok(manifest)
    }

    fn add_function(&mut self, symbol: &str, section: &str) -> Result<(), ManifestError> {
        // Functions that programs call.
        if section.starts_with(".text") {
            return Ok(());
        }
        let malformed = |problem| ManifestError::Symbol { symbol: symbol.to_owned(), problem };
        let (hook, way) = symbol
            .rsplit_once("__")
            .and_then(|(hook, way)| Some((hook, AttachKind::parse(way)?)))
            .filter(|(hook, _)| !hook.is_empty())
            .ok_or_else(|| {
                let ways = AttachKind::ALL.map(AttachKind::as_str).join(", ");
                malformed(format!("expected <hook>__<way>, where <way> is one of {ways}"))
            })?;
        let target = section
            .split_once('/')
            .filter(|(kind, target)| way.section_types().contains(kind) && !target.is_empty())
            .map(|(_, target)| target)
            .ok_or_else(|| {
                let kinds = way.section_types().join(" or ");
                malformed(format!("invalid section `{section}` (expected {kinds}/<target>)"))
            })?;
        self.programs.push(Program {
            name: symbol.to_owned(),
            hook: hook.to_owned(),
            way,
            target: target.to_owned(),
        });
        Ok(())
    }

    fn add_variable(&mut self, symbol: &str, size: u64) -> Result<(), ManifestError> {
        let malformed = |problem| ManifestError::Symbol { symbol: symbol.to_owned(), problem };
        let Some(parsed) = Fact::parse(symbol) else {
            return Ok(());
        };
        let parsed = parsed.map_err(|problem| malformed(problem.to_owned()))?;
        let expected = parsed.size();
        if size != u64::from(expected) {
            return Err(malformed(format!("invalid size of {size} bytes (expected {expected})")));
        }
        self.facts.push(FactName { symbol: symbol.to_owned(), size: expected, parsed });
        Ok(())
    }
}
