//! A reader for the kernel's type information (BTF) in `/sys/kernel/btf`, which does not panic on any input.
//!
//! aya 0.14 keeps members and prototypes private and does not read module (split) BTF. This module
//! therefore resolves the four kinds of facts that need BTF: the offset of a member, the parameter of a
//! type, the value of an enum's variant, and whether a function exists. The files may come from a user, so
//! invalid bytes are an error, and a name that does not resolve is `None`.
//!
//! Format: `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h` of the kernel.

#[cfg(test)]
pub(crate) mod build;
mod format;
mod load;
mod member;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, ops::Range, sync::Arc};

use format::*;

pub use format::BtfError;
pub use load::{LoadError, load_kernel_btf};

/// Position of a type in its BTF: 0 is `void`; a module's own types continue after vmlinux's.
pub type TypeId = u32;

/// The kinds of named type that [`Btf::find_all`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A struct or a union, with members.
    Struct,
    /// An enum of either width, with values.
    Enum,
    Func,
    Typedef,
}

/// The position of a member in the type that the path started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// In bytes from the start of the outermost type; rounded down for a bitfield.
    pub byte_offset: u32,
    /// In bytes; for a bitfield, of the type that it is declared with.
    pub size: u32,
    /// A bitfield: a read at `byte_offset` would return other bits too.
    pub bitfield: bool,
}

/// One parameter of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    pub name: &'a str,
    pub ty: ParamType<'a>,
}

/// The part of a parameter's type that distinguishes parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamType<'a> {
    /// A pointer to the struct or union of this name, defined or only declared.
    PointerTo(&'a str),
    /// An enum passed by value.
    Enum(&'a str),
    Other,
}

/// Longest chain of typedefs, qualifiers or array dimensions that is followed, as in the kernel
/// (`MAX_RESOLVE_DEPTH`). It ends loops in invalid data.
const MAX_DEPTH: u32 = 32;
/// The types of one kernel image or module. Cloning is cheap.
#[derive(Clone)]
pub struct Btf(Arc<Table>);

struct Table {
    /// The vmlinux BTF that a module's types refer to.
    base: Option<Btf>,
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Id of the first type and offset of the first string that are this table's own.
    first_id: TypeId,
    first_string: u32,
    /// Byte offset of each own type.
    offsets: Vec<u32>,
}

impl Btf {
    /// Reads a kernel image's BTF.
    ///
    /// # Errors
    /// See [`BtfError`]. Ids and names inside types are not checked here: a look-up with an invalid one
    /// finds nothing.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, BtfError> {
        Self::parse_onto(bytes.into(), None)
    }

    /// Reads a module's BTF, whose type ids and string offsets continue after those of `base`.
    ///
    /// # Errors
    /// As [`Btf::parse`].
    pub fn parse_split(bytes: impl Into<Vec<u8>>, base: &Self) -> Result<Self, BtfError> {
        Self::parse_onto(bytes.into(), Some(base.clone()))
    }

    fn parse_onto(bytes: Vec<u8>, base: Option<Self>) -> Result<Self, BtfError> {
        let (types, strings) = sections(&bytes)?;
        let (first_id, first_string) = match &base {
            Some(base) => (base.end_id(), base.end_string()),
            None => (1, 0),
        };

        // The kernel's types take 20 to 30 bytes on average.
        let mut offsets = Vec::with_capacity(types.len() / 20);
        let type_bytes = bytes.get(..types.end).unwrap_or_default();
        let mut offset = types.start;
        while offset < types.end {
            let type_id = first_id.saturating_add(offsets.len() as u32);
            let ty =
                Type::read(type_bytes, offset).ok_or(BtfError::Truncated { type_id, offset })?;
            let trailing = ty.trailing_len().ok_or(BtfError::UnknownKind {
                type_id,
                offset,
                kind: ty.kind,
            })?;
            let end = offset + TYPE_LEN + trailing;
            if end > types.end {
                return Err(BtfError::Truncated { type_id, offset });
            }
            offsets.push(offset as u32);
            offset = end;
        }

        Ok(Self(Arc::new(Table { base, bytes, strings, first_id, first_string, offsets })))
    }

    /// Ids of the first definition of each wanted name, in one pass over this BTF's own types (not
    /// its base's). Declarations without members or values do not count.
    pub fn find_all<'n>(&self, wanted: &[(Kind, &'n str)]) -> HashMap<(Kind, &'n str), TypeId> {
        let index: HashMap<(Kind, &[u8]), usize> = wanted
            .iter()
            .enumerate()
            .map(|(i, (kind, name))| ((*kind, name.as_bytes()), i))
            .collect();
        // Hashing 100,000 names would cost more than everything else here, and most names fail this test.
        let mut maybe = [false; 1 << 12];
        for (_, name) in wanted {
            if let Some(slot) = maybe.get_mut(prefix_slot(name.as_bytes())) {
                *slot = true;
            }
        }

        let mut found = HashMap::with_capacity(wanted.len());
        let table = &*self.0;
        for (id, &offset) in (table.first_id..).zip(&table.offsets) {
            let Some(ty) = Type::read(&table.bytes, offset as usize) else {
                continue;
            };
            let kind = match ty.kind {
                STRUCT | UNION if ty.count > 0 => Kind::Struct,
                ENUM | ENUM64 if ty.count > 0 => Kind::Enum,
                FUNC => Kind::Func,
                TYPEDEF => Kind::Typedef,
                _ => continue,
            };
            let Some(string) = self.string(ty.name) else {
                continue;
            };
            if maybe.get(prefix_slot(string)) != Some(&true) {
                continue;
            }
            if let Some(name) = index.get(&(kind, until_nul(string))).and_then(|i| wanted.get(*i)) {
                found.entry(*name).or_insert(id);
            }
        }
        found
    }

    /// Parameters of a function, or of the function that a typedef points to (`btf_trace_*`).
    pub fn prototype(&self, id: TypeId) -> Option<Vec<Param<'_>>> {
        let mut id = id;
        // At most FUNC -> FUNC_PROTO or typedef -> PTR -> FUNC_PROTO.
        for _ in 0..3 {
            let (proto_id, ty) = self.unqualified(id)?;
            match ty.kind {
                FUNC | PTR => id = ty.size_or_id,
                FUNC_PROTO => {
                    return (0..ty.count)
                        .map(|i| {
                            let [name, type_id] = self.trailing(proto_id, PARAM_LEN, i)?;
                            Some(Param { name: self.name(name), ty: self.param_type(type_id) })
                        })
                        .collect();
                }
                _ => return None,
            }
        }
        None
    }

    /// Names and values of an enum, in the order of declaration; empty for any other type.
    pub fn enum_values(&self, id: TypeId) -> Vec<(&str, i64)> {
        let Some((id, ty)) = self.unqualified(id) else {
            return Vec::new();
        };
        let value = |i| match ty.kind {
            ENUM => {
                let [name, value] = self.trailing(id, 8, i)?;
                // The flag means that the values are signed.
                let value = if ty.flag { i64::from(value as i32) } else { i64::from(value) };
                Some((self.name(name), value))
            }
            ENUM64 => {
                let [name, low, high] = self.trailing(id, 12, i)?;
                let value = (u64::from(high) << 32 | u64::from(low)) as i64;
                Some((self.name(name), value))
            }
            _ => None,
        };
        (0..ty.count).map_while(value).collect()
    }

    fn end_id(&self) -> TypeId {
        self.0.first_id.saturating_add(self.0.offsets.len() as u32)
    }

    fn end_string(&self) -> u32 {
        self.0.first_string.saturating_add(self.0.strings.len() as u32)
    }

    /// The table that holds a type, and the type's byte offset in it.
    fn locate(&self, id: TypeId) -> Option<(&Table, usize)> {
        match id.checked_sub(self.0.first_id) {
            Some(index) => {
                let offset = self.0.offsets.get(index as usize)?;
                Some((&self.0, *offset as usize))
            }
            None => self.0.base.as_ref()?.locate(id),
        }
    }

    fn ty(&self, id: TypeId) -> Option<Type> {
        let (table, offset) = self.locate(id)?;
        Type::read(&table.bytes, offset)
    }

    /// The first `N` words of a type's `index`-th trailing item of `len` bytes. The caller keeps
    /// `index` below the type's count.
    fn trailing<const N: usize>(&self, id: TypeId, len: usize, index: u32) -> Option<[u32; N]> {
        let (table, offset) = self.locate(id)?;
        let start = len.checked_mul(index as usize)?.checked_add(offset)?.checked_add(TYPE_LEN)?;
        let mut words = [0; N];
        for (i, word) in words.iter_mut().enumerate() {
            *word = u32_at(&table.bytes, start.checked_add(4 * i)?)?;
        }
        Some(words)
    }

    /// The string section from a name's first byte on.
    fn string(&self, offset: u32) -> Option<&[u8]> {
        let table = &*self.0;
        match offset.checked_sub(table.first_string) {
            Some(own) => table.bytes.get(table.strings.clone())?.get(own as usize..),
            None => table.base.as_ref()?.string(offset),
        }
    }

    fn name(&self, offset: u32) -> &str {
        self.string(offset)
            .and_then(|string| std::str::from_utf8(until_nul(string)).ok())
            .unwrap_or_default()
    }

    /// Skips typedefs and qualifiers.
    fn unqualified(&self, mut id: TypeId) -> Option<(TypeId, Type)> {
        for _ in 0..MAX_DEPTH {
            let ty = self.ty(id)?;
            match ty.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => id = ty.size_or_id,
                _ => return Some((id, ty)),
            }
        }
        None
    }

    fn param_type(&self, id: TypeId) -> ParamType<'_> {
        match self.unqualified(id) {
            Some((_, ty)) if ty.kind == PTR => match self.unqualified(ty.size_or_id) {
                Some((_, target)) if target.has_members() || target.kind == FWD => {
                    ParamType::PointerTo(self.name(target.name))
                }
                _ => ParamType::Other,
            },
            Some((_, ty)) if matches!(ty.kind, ENUM | ENUM64) => {
                ParamType::Enum(self.name(ty.name))
            }
            _ => ParamType::Other,
        }
    }
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf")
            .field("ids", &(self.0.first_id..self.end_id()))
            .finish_non_exhaustive()
    }
}

fn until_nul(string: &[u8]) -> &[u8] {
    string.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn is_named(string: &[u8], name: &str) -> bool {
    string.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

/// A 12-bit hash of a name's first eight bytes.
fn prefix_slot(string: &[u8]) -> usize {
    let hash = string
        .iter()
        .take(8)
        .take_while(|byte| **byte != 0)
        .fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    (hash.wrapping_mul(0x9e37_79b1) >> 20) as usize
}
