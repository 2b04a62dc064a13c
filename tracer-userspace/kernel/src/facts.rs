//! The values of the eBPF object's facts on one kernel.

use std::{collections::BTreeMap, fmt};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Vmlinux,
    Module(String),
    /// The table in [`super::ipvs_layout`].
    BuiltIn,
    Kallsyms,
    /// The value is the one that means "absent".
    Absent(Absence),
}

/// Why a fact has no value on this kernel, most specific reason last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Absence {
    /// No BTF has the struct, enum or function.
    NoType,
    /// kallsyms has no such symbol, or several.
    NoSymbol,
    /// kallsyms was not read, or hides the addresses.
    NoAddresses,
    /// The type exists, but not the member, parameter or variant.
    NoPart,
    /// The value does not fit its variable.
    TooLarge,
    /// A member that is a bitfield cannot be read by its byte offset.
    Bitfield,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmlinux => f.write_str("vmlinux BTF"),
            Self::Module(name) => write!(f, "{name} BTF"),
            Self::BuiltIn => f.write_str("built-in table"),
            Self::Kallsyms => f.write_str("kallsyms"),
            Self::Absent(absence) => write!(f, "absent: {absence}"),
        }
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoType => "this kernel's BTF has no such type or function",
            Self::NoSymbol => "kallsyms has no symbol of this name, or several",
            Self::NoAddresses => "symbol addresses were not read, or the kernel hides them",
            Self::NoPart => "the type or function has no such member, parameter or variant",
            Self::TooLarge => "the value does not fit its variable",
            Self::Bitfield => "the member is a bitfield",
        })
    }
}

/// One fact's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub number: u64,
    pub source: Source,
    pub(super) size: u8,
}

impl Value {
    /// As the variable holds it: 4 or 8 bytes in this machine's order.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.size == 8 {
            self.number.to_ne_bytes().to_vec()
        } else {
            (self.number as u32).to_ne_bytes().to_vec()
        }
    }
}

/// All facts of a manifest on one kernel, and the variant names of its reason enums.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub(super) values: BTreeMap<String, Value>,
    pub(super) reasons: BTreeMap<&'static str, BTreeMap<u32, String>>,
}

impl Facts {
    /// One fact of a kernel that has no other.
    #[cfg(test)]
    pub(super) fn of_test(symbol: &str, number: u64) -> Self {
        let value = Value { number, source: Source::Kallsyms, size: 4 };
        Self { values: BTreeMap::from([(symbol.into(), value)]), ..Self::default() }
    }

    /// A fact's value. `None` if this kernel does not have it, or if it is not in the manifest.
    pub fn get(&self, symbol: &str) -> Option<u64> {
        let value = self.values.get(symbol)?;
        (!matches!(value.source, Source::Absent(_))).then_some(value.number)
    }

    /// All values by symbol, absent ones included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(symbol, value)| (&**symbol, value))
    }

    /// Names of `sk_rst_reason` or `skb_drop_reason` by number, as the kernel's source writes
    /// them. `None` if this kernel has no such enum.
    pub fn reason_names(&self, enumeration: &str) -> Option<&BTreeMap<u32, String>> {
        self.reasons.get(enumeration)
    }
}
