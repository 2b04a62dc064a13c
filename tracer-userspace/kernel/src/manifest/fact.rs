//! The grammar of a fact's name.

use std::fmt;

/// Stands for `.` (C identifiers have no dots).
const DOT: &str = "_DOT_";

/// The kernel fact that a global variable's name asks for.
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

/// A member of a struct, or of structs nested in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberPath {
    pub owner: String,
    /// Never empty. A number is an array index.
    pub members: Vec<String>,
}

impl Fact {
    /// Parses a variable's name. `None` if the name has no prefix of the grammar and no `_DOT_`. The variable
    /// is then private to the programs.
    pub(super) fn parse(symbol: &str) -> Option<Result<Self, &'static str>> {
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
                return Some(Err("_DOT_ in a name without a known prefix"));
            } else {
                return None;
            };
        Some(parse(rest).ok_or("too few, too many or empty names after _OF_ or HAS_"))
    }

    /// Size of the variable in bytes.
    pub(super) fn size(&self) -> u8 {
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

/// In C syntax: `nf_conn.tuplehash[1].tuple`.
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
