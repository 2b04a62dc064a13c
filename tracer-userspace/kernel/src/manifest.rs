//! What the eBPF object asks for, read from its own symbol table.
//!
//! The object is the manifest: a probe names its hook, its way in and its target, and every kernel
//! fact that it needs, by the names of its symbols. Adding a probe or a field therefore changes
//! the eBPF crate alone.
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

use std::fmt;

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// Stands for `.` (C identifiers have no dots).
const DOT: &str = "_DOT_";

/// Everything that an eBPF object asks for, sorted by symbol name.
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
    pub way: Way,
    /// The tracepoint or kernel function to attach to.
    pub target: String,
}

/// How a program gets its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    RawTracepoint,
    Fentry,
    /// A kprobe on the part of a function that the compiler split off (`<function>.part.0`).
    KprobePart0,
    Kprobe,
    Kretprobe,
}

impl Way {
    const ALL: [Self; 5] =
        [Self::RawTracepoint, Self::Fentry, Self::KprobePart0, Self::Kprobe, Self::Kretprobe];

    /// As it stands at the end of a program's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RawTracepoint => "rawtp",
            Self::Fentry => "fentry",
            Self::KprobePart0 => "kprobe_part0",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.as_str() == name)
    }

    /// Whether it needs kprobes.
    pub fn is_kprobe(self) -> bool {
        matches!(self, Self::KprobePart0 | Self::Kprobe | Self::Kretprobe)
    }

    /// Section types from which aya makes this kind of program.
    fn section_types(self) -> &'static [&'static str] {
        match self {
            Self::RawTracepoint => &["raw_tp", "raw_tracepoint"],
            Self::Fentry => &["fentry"],
            Self::KprobePart0 | Self::Kprobe => &["kprobe"],
            Self::Kretprobe => &["kretprobe"],
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A global variable to be filled in before load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactName {
    pub symbol: String,
    /// In bytes: 8 for an address, else 4.
    pub size: u8,
    pub parsed: Fact,
}

/// What a global variable's name asks of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Offset(MemberPath),
    Size(MemberPath),
    Argument {
        function: String,
        /// A struct passed by pointer or an enum passed by value.
        type_name: String,
    },
    EnumValue {
        enumeration: String,
        variant: String,
    },
    Exists {
        function: String,
    },
    Address {
        symbol: String,
    },
}

/// A member of a struct, by way of any structs inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPath {
    pub owner: String,
    /// Never empty. A number is an array index.
    pub members: Vec<String>,
}

impl Fact {
    /// Reads a variable's name. `None` if the name has nothing to do with the grammar, so the
    /// variable is the program's own business.
    fn parse(symbol: &str) -> Option<Result<Self, &'static str>> {
        let (rest, parse): (_, fn(&str) -> Option<Self>) =
            if let Some(rest) = symbol.strip_prefix("OFFSET_OF_") {
                (rest, |rest| MemberPath::parse(rest).map(Self::Offset))
            } else if let Some(rest) = symbol.strip_prefix("SIZE_OF_") {
                (rest, |rest| MemberPath::parse(rest).map(Self::Size))
            } else if let Some(rest) = symbol.strip_prefix("ARG_OF_") {
                (rest, |rest| {
                    let [function, type_name] = pair(rest)?;
                    Some(Self::Argument { function, type_name })
                })
            } else if let Some(rest) = symbol.strip_prefix("VALUE_OF_") {
                (rest, |rest| {
                    let [enumeration, variant] = pair(rest)?;
                    Some(Self::EnumValue { enumeration, variant })
                })
            } else if let Some(rest) = symbol.strip_prefix("HAS_") {
                (rest, |rest| {
                    let function = one(rest)?;
                    Some(Self::Exists { function })
                })
            } else if let Some(rest) = symbol.strip_prefix("ADDRESS_OF_") {
                (rest, |rest| {
                    // Symbols may have dots (`nf_ct_delete.part.0`).
                    let symbol = components(rest)?.join(".");
                    Some(Self::Address { symbol })
                })
            } else if symbol.contains(DOT) {
                return Some(Err("it has _DOT_ in it but starts like no fact"));
            } else {
                return None;
            };
        Some(parse(rest).ok_or("the part behind _OF_ or HAS_ has too few, too many or empty names"))
    }

    /// In bytes.
    fn size(&self) -> u8 {
        match self {
            Self::Address { .. } => 8,
            _ => 4,
        }
    }
}

impl MemberPath {
    fn parse(path: &str) -> Option<Self> {
        let mut members = components(path)?;
        if members.len() < 2 {
            return None;
        }
        let owner = members.remove(0);
        Some(Self { owner, members })
    }
}

/// As C writes it: `nf_conn.tuplehash[1].tuple`.
impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.owner)?;
        for member in &self.members {
            if member.parse::<u32>().is_ok() {
                write!(f, "[{member}]")?;
            } else {
                write!(f, ".{member}")?;
            }
        }
        Ok(())
    }
}

fn components(path: &str) -> Option<Vec<String>> {
    path.split(DOT).map(|name| (!name.is_empty()).then(|| name.to_owned())).collect()
}

fn pair(path: &str) -> Option<[String; 2]> {
    components(path)?.try_into().ok()
}

fn one(path: &str) -> Option<String> {
    let [name] = components(path)?.try_into().ok()?;
    Some(name)
}

/// Why an object is not a usable manifest.
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
                write!(f, "the eBPF object's symbol {symbol}: {problem}")
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
    /// If it is not ELF, or a program or fact has a malformed name: a symbol that nobody would
    /// attach or fill in must not go unnoticed.
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
            .and_then(|(hook, way)| Some((hook, Way::parse(way)?)))
            .filter(|(hook, _)| !hook.is_empty())
            .ok_or_else(|| {
                let ways = Way::ALL.map(Way::as_str).join(", ");
                malformed(format!("a program is named <hook>__<way>, way: {ways}"))
            })?;
        let target = section
            .split_once('/')
            .filter(|(kind, target)| way.section_types().contains(kind) && !target.is_empty())
            .map(|(_, target)| target)
            .ok_or_else(|| {
                let kinds = way.section_types().join(" or ");
                malformed(format!("way {way} needs a section {kinds}/<target>, not {section}"))
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
            return Err(malformed(format!("it has {size} bytes, its value has {expected}")));
        }
        self.facts.push(FactName { symbol: symbol.to_owned(), size: expected, parsed });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNC: u8 = 2;
    const OBJECT: u8 = 1;

    /// A minimal 64-bit little-endian ELF: (symbol, type, size, section) in sections of no content.
    fn elf(symbols: &[(&str, u8, u64, &str)]) -> Vec<u8> {
        let mut strings = vec![0];
        let mut string = |name: &str| {
            let offset = strings.len() as u32;
            strings.extend(name.as_bytes());
            strings.push(0);
            offset
        };
        let mut sections: Vec<&str> = symbols.iter().map(|symbol| symbol.3).collect();
        sections.dedup();
        let mut symtab = vec![0; 24];
        for (name, kind, size, section) in symbols {
            let index = 1 + sections.iter().position(|s| s == section).expect("listed");
            symtab.extend(string(name).to_le_bytes());
            symtab.extend([1 << 4 | kind, 0]);
            symtab.extend((index as u16).to_le_bytes());
            symtab.extend(0_u64.to_le_bytes());
            symtab.extend(size.to_le_bytes());
        }
        let names: Vec<u32> = sections.iter().map(|name| string(name)).collect();

        let section = |name: u32, kind: u32, offset: usize, size: usize, link: u32, entry: u64| {
            let mut header = Vec::new();
            header.extend(name.to_le_bytes());
            header.extend(kind.to_le_bytes());
            for word in [0, 0, offset as u64, size as u64] {
                header.extend(word.to_le_bytes());
            }
            header.extend(link.to_le_bytes());
            header.extend(1_u32.to_le_bytes());
            header.extend(1_u64.to_le_bytes());
            header.extend(entry.to_le_bytes());
            header
        };
        let count = sections.len() + 3;
        let symtab_at = 64;
        let strings_at = symtab_at + symtab.len();
        let headers_at = strings_at + strings.len();
        let strtab_index = (count - 1) as u32;

        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(1_u16.to_le_bytes());
        file.extend(247_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        for word in [0, 0, headers_at as u64] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0_u32.to_le_bytes());
        for half in [64, 0, 0, 64, count as u16, strtab_index as u16] {
            file.extend(half.to_le_bytes());
        }
        file.extend(&symtab);
        file.extend(&strings);
        file.extend(vec![0; 64]);
        for name in names {
            file.extend(section(name, 1, 64, 0, 0, 0));
        }
        file.extend(section(0, 2, symtab_at, symtab.len(), strtab_index, 24));
        file.extend(section(0, 3, strings_at, strings.len(), 0, 0));
        file
    }

    fn fact(symbol: &str) -> Fact {
        let size = if symbol.starts_with("ADDRESS") { 8 } else { 4 };
        let manifest = Manifest::from_elf(&elf(&[(symbol, OBJECT, size, ".rodata")]))
            .expect("the name is well-formed");
        manifest.facts.into_iter().next().expect("one fact").parsed
    }

    fn refusal(symbol: &str, kind: u8, size: u64, section: &str) -> String {
        Manifest::from_elf(&elf(&[(symbol, kind, size, section)]))
            .expect_err("the symbol is malformed")
            .to_string()
    }

    #[test]
    fn programs_come_with_hook_way_and_target() {
        let manifest = Manifest::from_elf(&elf(&[
            ("memcpy", FUNC, 8, ".text"),
            ("__nf_conntrack_alloc__kretprobe", FUNC, 8, "kretprobe/__nf_conntrack_alloc"),
            ("nf_ct_delete__kprobe_part0", FUNC, 8, "kprobe/nf_ct_delete.part.0"),
            ("tcp_reset__rawtp", FUNC, 8, "raw_tp/tcp_receive_reset"),
        ]))
        .expect("well-formed");
        let seen: Vec<_> =
            manifest.programs.iter().map(|p| (p.hook.as_str(), p.way, p.target.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("__nf_conntrack_alloc", Way::Kretprobe, "__nf_conntrack_alloc"),
                ("nf_ct_delete", Way::KprobePart0, "nf_ct_delete.part.0"),
                ("tcp_reset", Way::RawTracepoint, "tcp_receive_reset"),
            ]
        );
    }

    #[test]
    fn fact_names_split_at_dot_and_keep_their_underscores() {
        let path = |owner: &str, members: &[&str]| MemberPath {
            owner: owner.to_owned(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
        };
        assert_eq!(
            fact("OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple"),
            Fact::Offset(path("nf_conn", &["tuplehash", "1", "tuple"]))
        );
        assert_eq!(fact("SIZE_OF_sk_buff_DOT__nfct"), Fact::Size(path("sk_buff", &["_nfct"])));
        assert_eq!(
            fact("ARG_OF_btf_trace_tcp_send_reset_DOT_sk_rst_reason"),
            Fact::Argument {
                function: "btf_trace_tcp_send_reset".to_owned(),
                type_name: "sk_rst_reason".to_owned()
            }
        );
        assert_eq!(
            fact("VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NO_SOCKET"),
            Fact::EnumValue {
                enumeration: "skb_drop_reason".to_owned(),
                variant: "SKB_DROP_REASON_NO_SOCKET".to_owned()
            }
        );
        assert_eq!(
            fact("HAS_nf_ct_destroy"),
            Fact::Exists { function: "nf_ct_destroy".to_owned() }
        );
        assert_eq!(
            fact("ADDRESS_OF_nf_ct_delete_DOT_part_DOT_0"),
            Fact::Address { symbol: "nf_ct_delete.part.0".to_owned() }
        );
    }

    #[test]
    fn variables_outside_the_grammar_are_left_alone() {
        let object = elf(&[("EVENTS", OBJECT, 28, "maps"), ("LIMIT", OBJECT, 4, ".rodata")]);
        assert_eq!(Manifest::from_elf(&object).expect("well-formed").facts, []);
    }

    #[test]
    fn malformed_facts_are_refused_by_name() {
        for symbol in [
            "OFFSET_OF_sock",
            "OFFSET_OF_sock_DOT_",
            "SIZE_OF__DOT_sk_err",
            "ARG_OF_f_DOT_a_DOT_b",
            "VALUE_OF_reason",
            "HAS_",
            "HAS_f_DOT_part",
            "ADDRESS_OF_",
            "OFSET_OF_sock_DOT_sk_err",
        ] {
            let error = refusal(symbol, OBJECT, 4, ".rodata");
            assert!(error.contains(symbol), "{error}");
        }
        let error = refusal("OFFSET_OF_sock_DOT_sk_err", OBJECT, 8, ".rodata");
        assert!(error.contains("8 bytes"), "{error}");
        let error = refusal("ADDRESS_OF_tcp_reset", OBJECT, 4, ".rodata");
        assert!(error.contains("4 bytes"), "{error}");
    }

    #[test]
    fn programs_that_nobody_would_attach_are_refused_by_name() {
        for (symbol, section) in [
            ("tcp_reset", "kprobe/tcp_reset"),
            ("__kprobe", "kprobe/tcp_reset"),
            ("tcp_reset__uprobe", "uprobe/tcp_reset"),
            ("tcp_reset__kprobe", "kprobe"),
            ("tcp_reset__kprobe", "kprobe/"),
            ("tcp_reset__fentry", "kprobe/tcp_reset"),
        ] {
            let error = refusal(symbol, FUNC, 8, section);
            assert!(error.contains(symbol), "{error}");
        }
    }

    #[test]
    fn a_damaged_object_is_an_error() {
        let object = elf(&[("tcp_reset__kprobe", FUNC, 8, "kprobe/tcp_reset")]);
        assert!(Manifest::from_elf(b"not an object").is_err());
        for len in 0..object.len() {
            assert!(Manifest::from_elf(&object[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_path_reads_as_c() {
        let Fact::Offset(path) = fact("OFFSET_OF_nf_conn_DOT_tuplehash_DOT_1_DOT_tuple") else {
            unreachable!()
        };
        assert_eq!(path.to_string(), "nf_conn.tuplehash[1].tuple");
    }
}
