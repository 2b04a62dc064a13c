//! A total reader for the kernel's type information (BTF), as found in `/sys/kernel/btf`.
//!
//! aya 0.14 keeps members and prototypes private and does not read module (split) BTF, so this
//! module answers the four questions that the plan asks: where is a member, which parameter has
//! this type, what is an enum's value, does a function exist. It is read from files that a user
//! may hand over, so nothing here panics: what does not parse is an error, what does not resolve
//! is `None`.
//!
//! Format: `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h` of the kernel.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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

/// Where a member lies in the type that the path started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// In bytes from the start of the outermost type; rounded down for a bitfield.
    pub byte_offset: u32,
    /// In bytes; for a bitfield, of the type that it is declared with.
    pub size: u32,
    /// A plain read at `byte_offset` would return other bits too.
    pub bitfield: bool,
}

/// One parameter of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    pub name: &'a str,
    pub ty: ParamType<'a>,
}

/// As much of a parameter's type as telling parameters apart takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamType<'a> {
    /// A pointer to the struct or union of this name, defined or only declared.
    PointerTo(&'a str),
    /// An enum passed by value.
    Enum(&'a str),
    Other,
}

/// Why bytes are not usable BTF. Offsets are in bytes from the start of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BtfError {
    /// The header is not one that this reader understands.
    Header(&'static str),
    /// A type reaches past the end of the type section.
    Truncated { type_id: TypeId, offset: usize },
    /// A kind newer than this reader; its length is unknown, so nothing behind it can be found.
    UnknownKind { type_id: TypeId, offset: usize, kind: u8 },
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(problem) => write!(f, "not usable BTF: {problem}"),
            Self::Truncated { type_id, offset } => {
                write!(f, "BTF type {type_id} at byte {offset} is cut short")
            }
            Self::UnknownKind { type_id, offset, kind } => write!(
                f,
                "BTF type {type_id} at byte {offset} has kind {kind}, this program knows 1 to {ENUM64}"
            ),
        }
    }
}

impl std::error::Error for BtfError {}

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_LEN: usize = 24;
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;
const PARAM_LEN: usize = 8;
/// eBPF runs on 64-bit kernels only.
const POINTER_SIZE: u32 = 8;

const INT: u8 = 1;
const PTR: u8 = 2;
const ARRAY: u8 = 3;
const STRUCT: u8 = 4;
const UNION: u8 = 5;
const ENUM: u8 = 6;
const FWD: u8 = 7;
const TYPEDEF: u8 = 8;
const VOLATILE: u8 = 9;
const CONST: u8 = 10;
const RESTRICT: u8 = 11;
const FUNC: u8 = 12;
const FUNC_PROTO: u8 = 13;
const VAR: u8 = 14;
const DATASEC: u8 = 15;
const FLOAT: u8 = 16;
const DECL_TAG: u8 = 17;
const TYPE_TAG: u8 = 18;
const ENUM64: u8 = 19;

/// Longest chain of typedefs, qualifiers or array dimensions that is followed; the kernel's own
/// limit (`MAX_RESOLVE_DEPTH`). It ends loops in malformed data.
const MAX_DEPTH: u32 = 32;
/// Most members looked at for one path component; the kernel's largest structs have hundreds.
/// Without it a few nested anonymous structs could cost exponential time.
const MAX_MEMBERS_VISITED: u32 = 1 << 16;

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

/// A decoded `struct btf_type`.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u8,
    flag: bool,
    /// Number of members, values or parameters.
    count: u32,
    size_or_id: u32,
}

impl Type {
    fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let info = u32_at(bytes, at.checked_add(4)?)?;
        Some(Self {
            name: u32_at(bytes, at)?,
            // Kernels before 2026 use 16 bits of count and 5 of kind and require the rest to be 0.
            kind: (info >> 24 & 0x7f) as u8,
            flag: info >> 31 == 1,
            count: info & 0x00ff_ffff,
            size_or_id: u32_at(bytes, at.checked_add(8)?)?,
        })
    }

    /// Bytes that follow the type's header. `None` for a kind that this reader does not know.
    fn trailing_len(&self) -> Option<usize> {
        let count = self.count as usize;
        Some(match self.kind {
            INT | VAR | DECL_TAG => 4,
            ARRAY => 12,
            STRUCT | UNION => count * MEMBER_LEN,
            ENUM => count * 8,
            FUNC_PROTO => count * PARAM_LEN,
            DATASEC | ENUM64 => count * 12,
            PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
            _ => return None,
        })
    }

    fn has_members(&self) -> bool {
        matches!(self.kind, STRUCT | UNION)
    }
}

/// A member as found by name, before its size is known.
#[derive(Clone, Copy)]
struct Place {
    type_id: TypeId,
    bit_offset: u64,
    bitfield: bool,
}

impl Btf {
    /// Reads a kernel image's BTF.
    ///
    /// # Errors
    /// See [`BtfError`]. Ids and names inside types are not checked here: a look-up that meets a
    /// wrong one finds nothing.
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
        // Hashing 100,000 names costs more than everything else here: most fail this test first.
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

    /// Follows `path` from the type `owner`: member names, found through anonymous structs and
    /// unions, or decimal array indices. An array without index stands for its first element where
    /// a member name follows. Pointers are not followed. An empty path is the type itself.
    pub fn member(&self, owner: TypeId, path: &[&str]) -> Option<Member> {
        let mut place = Place { type_id: owner, bit_offset: 0, bitfield: false };
        for component in path {
            place = self.step(place, component)?;
        }
        Some(Member {
            byte_offset: u32::try_from(place.bit_offset / 8).ok()?,
            size: self.size_of(place.type_id)?,
            bitfield: place.bitfield,
        })
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
                // The flag says that the values are signed.
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

    /// In bytes. `None` for what has no size (`void`, functions) or more than `u32` holds.
    fn size_of(&self, mut id: TypeId) -> Option<u32> {
        let mut elements = 1_u32;
        for _ in 0..MAX_DEPTH {
            let (array_id, ty) = self.unqualified(id)?;
            let size = match ty.kind {
                ARRAY => {
                    let [element, _, length] = self.trailing(array_id, 12, 0)?;
                    elements = elements.checked_mul(length)?;
                    id = element;
                    continue;
                }
                PTR => POINTER_SIZE,
                INT | STRUCT | UNION | ENUM | FLOAT | DATASEC | ENUM64 => ty.size_or_id,
                _ => return None,
            };
            return elements.checked_mul(size);
        }
        None
    }

    fn step(&self, from: Place, component: &str) -> Option<Place> {
        let mut place = from;
        for _ in 0..MAX_DEPTH {
            let (id, ty) = self.unqualified(place.type_id)?;
            match ty.kind {
                ARRAY => {
                    let [element, _, length] = self.trailing(id, 12, 0)?;
                    place.type_id = element;
                    if let Ok(index) = component.parse::<u32>() {
                        let bits = u64::from(self.size_of(element)?) * 8;
                        let skipped = bits.checked_mul(u64::from(index))?;
                        place.bit_offset = place.bit_offset.checked_add(skipped)?;
                        return (index < length).then_some(place);
                    }
                }
                STRUCT | UNION => {
                    let mut budget = MAX_MEMBERS_VISITED;
                    let member = self.find_member(id, &ty, component, MAX_DEPTH, &mut budget)?;
                    return Some(Place {
                        bit_offset: place.bit_offset.checked_add(member.bit_offset)?,
                        ..member
                    });
                }
                _ => return None,
            }
        }
        None
    }

    fn find_member(
        &self,
        id: TypeId,
        ty: &Type,
        name: &str,
        depth: u32,
        budget: &mut u32,
    ) -> Option<Place> {
        let depth = depth.checked_sub(1)?;
        for i in 0..ty.count {
            *budget = budget.checked_sub(1)?;
            let [name_offset, type_id, position] = self.trailing(id, MEMBER_LEN, i)?;
            let string = self.string(name_offset)?;
            let member = self.place(ty, type_id, position);
            if is_named(string, name) {
                return Some(member);
            }
            if !is_named(string, "") {
                continue;
            }
            // An anonymous struct or union: its members are named as if they were ours. Bitfield
            // padding has no name either, but no members.
            let Some((inner_id, inner)) = self.unqualified(type_id) else {
                continue;
            };
            if !inner.has_members() {
                continue;
            }
            if let Some(found) = self.find_member(inner_id, &inner, name, depth, budget) {
                return Some(Place {
                    bit_offset: member.bit_offset.checked_add(found.bit_offset)?,
                    ..found
                });
            }
        }
        None
    }

    /// Decodes a member's position, which has one form in structs with bitfields (the flag) and
    /// one in all others, where an old compiler may still have put a bitfield into the type.
    fn place(&self, owner: &Type, type_id: TypeId, position: u32) -> Place {
        let (bit_offset, bitfield) = if owner.flag {
            (position & 0x00ff_ffff, position >> 24 != 0)
        } else {
            (position, self.is_partial_int(type_id))
        };
        Place {
            type_id,
            bit_offset: u64::from(bit_offset),
            bitfield: bitfield || bit_offset % 8 != 0,
        }
    }

    /// An integer type that uses only some bits of its bytes.
    fn is_partial_int(&self, id: TypeId) -> bool {
        let Some((id, ty)) = self.unqualified(id) else {
            return false;
        };
        if ty.kind != INT {
            return false;
        }
        let Some([encoding]) = self.trailing(id, 4, 0) else {
            return false;
        };
        let (bits, shift) = (encoding & 0xff, encoding >> 16 & 0xff);
        shift != 0 || Some(bits) != ty.size_or_id.checked_mul(8)
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

/// Byte ranges of the type and string sections.
fn sections(bytes: &[u8]) -> Result<(Range<usize>, Range<usize>), BtfError> {
    let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
    match magic {
        Some(MAGIC) => {}
        Some(magic) if magic == MAGIC.swap_bytes() => {
            return Err(BtfError::Header("it has the other byte order"));
        }
        _ => return Err(BtfError::Header("the magic number is missing")),
    }
    if bytes.get(2) != Some(&VERSION) {
        return Err(BtfError::Header("its version is not 1"));
    }
    if u32::try_from(bytes.len()).is_err() {
        return Err(BtfError::Header("it is larger than 4 GiB"));
    }
    let field = |at| {
        u32_at(bytes, at)
            .map(|value| value as usize)
            .ok_or(BtfError::Header("the header is cut short"))
    };
    // Sections are placed relative to the header's end; a longer header is a newer one.
    let header_len = field(4)?;
    if header_len < HEADER_LEN {
        return Err(BtfError::Header("the header is too short"));
    }
    let section = |offset: usize, len: usize| {
        let start = header_len.checked_add(offset)?;
        let end = start.checked_add(len)?;
        (end <= bytes.len()).then_some(start..end)
    };
    let types = section(field(8)?, field(12)?).ok_or(BtfError::Header("types are cut short"))?;
    let strings = section(field(16)?, field(20)?).ok_or(BtfError::Header("names are cut short"))?;
    Ok((types, strings))
}

/// The kernel runs on this machine, so its byte order is ours.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
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

/// Hand-made BTF for this module's and its neighbours' tests.
#[cfg(test)]
pub(crate) mod build {
    use super::*;

    /// Writes types one after the other; each method returns the new type's id.
    pub struct Builder {
        types: Vec<u8>,
        strings: Vec<u8>,
        next_id: TypeId,
        first_string: u32,
    }

    impl Builder {
        pub fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0], next_id: 1, first_string: 0 }
        }

        /// A module's BTF, continuing `base`.
        pub fn onto(base: &Btf) -> Self {
            Self { next_id: base.end_id(), first_string: base.end_string(), ..Self::new() }
        }

        pub fn bytes(&self) -> Vec<u8> {
            let mut bytes = Vec::new();
            bytes.extend(MAGIC.to_ne_bytes());
            bytes.extend([VERSION, 0]);
            let types_len = self.types.len() as u32;
            for word in [24, 0, types_len, types_len, self.strings.len() as u32] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(&self.types);
            bytes.extend(&self.strings);
            bytes
        }

        pub fn build(&self) -> Btf {
            Btf::parse(self.bytes()).expect("the builder writes valid BTF")
        }

        pub fn raw(&mut self, name: &str, kind: u8, flag: bool, count: u32, last: u32) -> TypeId {
            let name = self.string(name);
            let info = u32::from(flag) << 31 | u32::from(kind) << 24 | count;
            self.words(&[name, info, last]);
            self.next_id += 1;
            self.next_id - 1
        }

        pub fn int(&mut self, name: &str, size: u32) -> TypeId {
            self.partial_int(name, size, size * 8)
        }

        pub fn partial_int(&mut self, name: &str, size: u32, bits: u32) -> TypeId {
            let id = self.raw(name, INT, false, 0, size);
            self.words(&[bits]);
            id
        }

        pub fn ptr(&mut self, to: TypeId) -> TypeId {
            self.raw("", PTR, false, 0, to)
        }

        pub fn qualified(&mut self, to: TypeId) -> TypeId {
            let mut id = to;
            for kind in [VOLATILE, CONST, RESTRICT, TYPE_TAG] {
                id = self.raw("", kind, false, 0, id);
            }
            id
        }

        pub fn typedef(&mut self, name: &str, to: TypeId) -> TypeId {
            self.raw(name, TYPEDEF, false, 0, to)
        }

        pub fn fwd(&mut self, name: &str) -> TypeId {
            self.raw(name, FWD, false, 0, 0)
        }

        pub fn array(&mut self, element: TypeId, length: u32) -> TypeId {
            let id = self.raw("", ARRAY, false, 0, 0);
            self.words(&[element, 0, length]);
            id
        }

        /// Members are (name, type, position): bits, and with `flag` the width in the top byte.
        pub fn members(
            &mut self,
            (name, kind, flag): (&str, u8, bool),
            size: u32,
            members: &[(&str, TypeId, u32)],
        ) -> TypeId {
            let id = self.raw(name, kind, flag, members.len() as u32, size);
            for (name, ty, position) in members {
                let name = self.string(name);
                self.words(&[name, *ty, *position]);
            }
            id
        }

        pub fn structure(&mut self, name: &str, size: u32, m: &[(&str, TypeId, u32)]) -> TypeId {
            self.members((name, STRUCT, false), size, m)
        }

        pub fn union(&mut self, name: &str, size: u32, m: &[(&str, TypeId, u32)]) -> TypeId {
            self.members((name, UNION, false), size, m)
        }

        pub fn enumeration(&mut self, name: &str, signed: bool, v: &[(&str, u32)]) -> TypeId {
            let id = self.raw(name, ENUM, signed, v.len() as u32, 4);
            for (name, value) in v {
                let name = self.string(name);
                self.words(&[name, *value]);
            }
            id
        }

        pub fn enum64(&mut self, name: &str, values: &[(&str, u64)]) -> TypeId {
            let id = self.raw(name, ENUM64, false, values.len() as u32, 8);
            for (name, value) in values {
                let name = self.string(name);
                self.words(&[name, *value as u32, (*value >> 32) as u32]);
            }
            id
        }

        pub fn proto(&mut self, params: &[(&str, TypeId)]) -> TypeId {
            let id = self.raw("", FUNC_PROTO, false, params.len() as u32, 0);
            for (name, ty) in params {
                let name = self.string(name);
                self.words(&[name, *ty]);
            }
            id
        }

        pub fn func(&mut self, name: &str, params: &[(&str, TypeId)]) -> TypeId {
            let proto = self.proto(params);
            self.raw(name, FUNC, false, 0, proto)
        }

        fn words(&mut self, words: &[u32]) {
            for word in words {
                self.types.extend(word.to_ne_bytes());
            }
        }

        fn string(&mut self, string: &str) -> u32 {
            if string.is_empty() {
                return 0;
            }
            let offset = self.first_string + self.strings.len() as u32;
            self.strings.extend(string.as_bytes());
            self.strings.push(0);
            offset
        }
    }
}

#[cfg(test)]
mod tests {
    use super::build::Builder;
    use super::*;

    fn plain(byte_offset: u32, size: u32) -> Option<Member> {
        Some(Member { byte_offset, size, bitfield: false })
    }

    /// A struct with every shape that a path can cross.
    fn conn() -> (Builder, TypeId) {
        let mut b = Builder::new();
        let u16_ = b.int("u16", 2);
        let u32_ = b.int("u32", 4);
        let pair = b.structure("pair", 4, &[("low", u16_, 0), ("high", u16_, 16)]);
        let pairs = b.array(pair, 2);
        let inner = b.structure("", 4, &[("port", u16_, 0), ("num", u16_, 16)]);
        let inner_qualified = b.qualified(inner);
        let either = b.union("", 4, &[("both", u32_, 0), ("", inner_qualified, 0)]);
        let either_alias = b.typedef("either_t", either);
        let pointer = b.ptr(pair);
        let conn = b.structure(
            "conn",
            24,
            &[("", either_alias, 32), ("pairs", pairs, 64), ("next", pointer, 128)],
        );
        (b, conn)
    }

    #[test]
    fn members_of_nested_anonymous_types_count_from_the_outermost_struct() {
        let (b, conn) = conn();
        let btf = b.build();
        assert_eq!(btf.member(conn, &["both"]), plain(4, 4));
        assert_eq!(btf.member(conn, &["port"]), plain(4, 2));
        assert_eq!(btf.member(conn, &["num"]), plain(6, 2));
        assert_eq!(btf.member(conn, &["nothing"]), None);
        assert_eq!(btf.member(conn, &["nu"]), None);
    }

    #[test]
    fn arrays_are_walked_by_index_or_as_their_first_element() {
        let (b, conn) = conn();
        let btf = b.build();
        assert_eq!(btf.member(conn, &["pairs"]), plain(8, 8));
        assert_eq!(btf.member(conn, &["pairs", "1"]), plain(12, 4));
        assert_eq!(btf.member(conn, &["pairs", "1", "high"]), plain(14, 2));
        assert_eq!(btf.member(conn, &["pairs", "high"]), plain(10, 2));
        assert_eq!(btf.member(conn, &["pairs", "2"]), None);
    }

    #[test]
    fn a_path_does_not_cross_a_pointer() {
        let (b, conn) = conn();
        let btf = b.build();
        assert_eq!(btf.member(conn, &["next"]), plain(16, 8));
        assert_eq!(btf.member(conn, &["next", "low"]), None);
    }

    #[test]
    fn bitfields_of_both_encodings_are_marked() {
        let mut b = Builder::new();
        let u32_ = b.int("u32", 4);
        let nibble = b.partial_int("u32", 4, 4);
        let new =
            b.members(("new", STRUCT, true), 8, &[("word", u32_, 0), ("bits", u32_, 3 << 24 | 34)]);
        let old = b.structure("old", 8, &[("word", u32_, 0), ("bits", nibble, 32)]);
        let btf = b.build();
        for id in [new, old] {
            assert_eq!(btf.member(id, &["word"]), plain(0, 4));
            let bits = btf.member(id, &["bits"]).expect("the member exists");
            assert!(bits.bitfield);
            assert_eq!(bits.byte_offset, 4);
        }
    }

    #[test]
    fn the_definition_with_members_wins_over_declarations() {
        let mut b = Builder::new();
        let u32_ = b.int("u32", 4);
        b.fwd("sock");
        b.structure("sock", 0, &[]);
        b.enumeration("reason", false, &[]);
        let sock = b.structure("sock", 4, &[("err", u32_, 0)]);
        b.structure("sock", 4, &[("other", u32_, 0)]);
        let reason = b.enumeration("reason", false, &[("A", 1)]);
        let wanted = [(Kind::Struct, "sock"), (Kind::Enum, "reason"), (Kind::Func, "sock")];
        let found = b.build().find_all(&wanted);
        assert_eq!(found.get(&wanted[0]), Some(&sock));
        assert_eq!(found.get(&wanted[1]), Some(&reason));
        assert_eq!(found.get(&wanted[2]), None);
    }

    #[test]
    fn names_with_a_common_prefix_are_told_apart() {
        let mut b = Builder::new();
        b.func("tcp_v4_send_reset", &[]);
        let short = b.func("tcp_v4_send", &[]);
        let found = b.build().find_all(&[(Kind::Func, "tcp_v4_send")]);
        assert_eq!(found.get(&(Kind::Func, "tcp_v4_send")), Some(&short));
    }

    #[test]
    fn parameters_show_pointers_to_structs_and_enums_through_qualifiers() {
        let mut b = Builder::new();
        let int = b.int("int", 4);
        let skb = b.fwd("sk_buff");
        let const_skb = b.qualified(skb);
        let skb_pointer = b.ptr(const_skb);
        let void_pointer = b.ptr(0);
        let reason = b.enumeration("why", false, &[("A", 1)]);
        let reason_alias = b.typedef("why_t", reason);
        let params =
            [("ctx", void_pointer), ("skb", skb_pointer), ("why", reason_alias), ("n", int)];
        let func = b.func("send", &params);
        let proto = b.proto(&params);
        let pointer = b.ptr(proto);
        let trace = b.typedef("btf_trace_send", pointer);
        let btf = b.build();
        let types = |id| {
            let params = btf.prototype(id).expect("it is a function");
            params.into_iter().map(|p| p.ty).collect::<Vec<_>>()
        };
        let expected = vec![
            ParamType::Other,
            ParamType::PointerTo("sk_buff"),
            ParamType::Enum("why"),
            ParamType::Other,
        ];
        assert_eq!(types(func), expected);
        assert_eq!(types(trace), expected);
        assert_eq!(btf.prototype(int), None);
    }

    #[test]
    fn enum_values_keep_sign_and_width() {
        let mut b = Builder::new();
        let unsigned = b.enumeration("u", false, &[("ONE", 1), ("MASK", 0xffff_0000)]);
        let signed = b.enumeration("s", true, &[("MINUS", u32::MAX)]);
        let wide = b.enum64("w", &[("BIG", 1 << 40)]);
        let btf = b.build();
        assert_eq!(btf.enum_values(unsigned), [("ONE", 1), ("MASK", 0xffff_0000)]);
        assert_eq!(btf.enum_values(signed), [("MINUS", -1)]);
        assert_eq!(btf.enum_values(wide), [("BIG", 1 << 40)]);
    }

    #[test]
    fn a_module_continues_ids_and_names_of_its_base() {
        let (base, _) = conn();
        let base = base.build();
        let mut b = Builder::onto(&base);
        let base_conn = base.find_all(&[(Kind::Struct, "conn")])[&(Kind::Struct, "conn")];
        let own = b.structure("dest", 32, &[("conn", base_conn, 64)]);
        let module = Btf::parse_split(b.bytes(), &base).expect("valid");
        let wanted = (Kind::Struct, "dest");
        assert_eq!(module.find_all(&[wanted]).get(&wanted), Some(&own));
        assert_eq!(module.member(own, &["conn", "num"]), plain(14, 2));
    }

    #[test]
    fn a_kind_from_the_future_is_named_with_its_place() {
        let mut b = Builder::new();
        b.int("u32", 4);
        b.raw("new", 20, false, 0, 0);
        let error = Btf::parse(b.bytes()).expect_err("kind 20 is unknown");
        assert_eq!(error, BtfError::UnknownKind { type_id: 2, offset: 40, kind: 20 });
    }

    #[test]
    fn a_type_cut_short_is_named_with_its_place() {
        let mut b = Builder::new();
        b.int("u32", 4);
        b.raw("long", STRUCT, false, 1, 4);
        let error = Btf::parse(b.bytes()).expect_err("the member is missing");
        assert_eq!(error, BtfError::Truncated { type_id: 2, offset: 40 });
    }

    #[test]
    fn loops_of_typedefs_arrays_and_anonymous_members_end() {
        let mut b = Builder::new();
        let typedef = b.typedef("loop", 1);
        let array = b.array(2, 1);
        let structure = b.structure("s", 4, &[("", 3, 0), ("", 3, 0)]);
        let btf = b.build();
        for id in [typedef, array, structure] {
            assert_eq!(btf.member(id, &["x"]), None);
        }
        assert_eq!(btf.member(array, &[]), None);
    }

    /// xorshift64*: seeded, so a failure repeats.
    fn random(state: &mut u64) -> usize {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
    }

    /// Asks everything of everything.
    fn exercise(btf: &Btf) {
        btf.find_all(&[(Kind::Struct, "conn"), (Kind::Func, "f"), (Kind::Enum, "")]);
        for id in 0..btf.end_id().saturating_add(2) {
            for path in [&["port"][..], &["pairs", "1", "high"], &["next", "low"], &[]] {
                btf.member(id, path);
            }
            btf.prototype(id);
            btf.enum_values(id);
        }
    }

    fn varied() -> Builder {
        let (mut b, conn) = conn();
        let pointer = b.ptr(conn);
        b.func("f", &[("conn", pointer), ("", 0)]);
        b.enumeration("e", true, &[("A", 1), ("B", 2)]);
        b.enum64("w", &[("BIG", 1 << 40)]);
        b
    }

    #[test]
    fn every_truncation_is_an_error_and_none_panics() {
        let mut b = varied();
        for i in 0..200 {
            let name = format!("s{i}");
            b.structure(&name, 4, &[("a", 1, 0), ("", 5, 32)]);
        }
        let whole = b.bytes();
        assert!(whole.len() > 4096);
        for len in 0..4096 {
            assert!(Btf::parse(&whole[..len]).is_err(), "{len} bytes");
            // The same with a header that agrees with the length.
            let mut cut = whole[..len].to_vec();
            if let (Some(types_len), true) = (len.checked_sub(HEADER_LEN), len > HEADER_LEN) {
                cut[12..16].copy_from_slice(&(types_len as u32).to_ne_bytes());
                cut[16..20].copy_from_slice(&(types_len as u32).to_ne_bytes());
                cut[20..24].copy_from_slice(&0_u32.to_ne_bytes());
                if let Ok(btf) = Btf::parse(cut) {
                    btf.member(conn().1, &["port"]);
                }
            }
        }
    }

    #[test]
    fn no_change_of_bytes_makes_the_reader_panic() {
        let base = varied();
        let mut module = Builder::onto(&base.build());
        module.structure("m", 8, &[("a", 1, 0), ("conn", 5, 32)]);
        let (base, module) = (base.bytes(), module.bytes());
        let mut parsed = 0;
        for seed in 1..=20_000_u64 {
            let mut state = seed;
            let mut bytes = if seed % 4 == 0 { &module } else { &base }.clone();
            for _ in 0..=random(&mut state) % 4 {
                let at = random(&mut state) % bytes.len();
                bytes[at] = random(&mut state) as u8;
            }
            let btf = if seed % 4 == 0 {
                Btf::parse(&*base).and_then(|base| Btf::parse_split(bytes, &base))
            } else {
                Btf::parse(bytes)
            };
            if let Ok(btf) = btf {
                exercise(&btf);
                parsed += 1;
            }
        }
        assert!(parsed > 1000, "only {parsed} of 20000 got past the header");
    }

    #[test]
    fn this_machines_kernel_has_the_known_socket_layout() {
        let path = "/sys/kernel/btf/vmlinux";
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                eprintln!("skipped: cannot read {path}: {error}");
                return;
            }
        };
        let btf = Btf::parse(bytes).expect("the running kernel's BTF is readable");
        let (common, sock) = ((Kind::Struct, "sock_common"), (Kind::Struct, "sock"));
        let found = btf.find_all(&[common, sock]);
        assert_eq!(btf.member(found[&common], &["skc_dport"]), plain(12, 2));
        let err = btf.member(found[&sock], &["sk_err"]).expect("sk_err");
        assert_eq!((err.size, err.bitfield), (4, false));
        // 568 on 5.10, 544 on 6.1, 284 from 6.12 on.
        assert!([284, 544, 568].contains(&err.byte_offset), "{err:?}");
    }
}
