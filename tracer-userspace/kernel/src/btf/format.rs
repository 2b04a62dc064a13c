//! The binary format of BTF.

use std::{fmt, ops::Range};

use super::TypeId;

/// Why bytes are not valid BTF. Offsets are in bytes from the start of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BtfError {
    /// The header is invalid or unsupported.
    Header(&'static str),
    /// A type reaches past the end of the type section.
    Truncated { type_id: TypeId, offset: usize },
    /// A kind newer than this reader. Its length is unknown, so the types after it cannot be found.
    UnknownKind { type_id: TypeId, offset: usize, kind: u8 },
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(problem) => write!(f, "invalid BTF: {problem}"),
            Self::Truncated { type_id, offset } => {
                write!(f, "BTF type {type_id} at byte {offset} is truncated")
            }
            Self::UnknownKind { type_id, offset, kind } => write!(
                f,
                "BTF type {type_id} at byte {offset} has unknown kind {kind} (expected 1 to {ENUM64})"
            ),
        }
    }
}

impl std::error::Error for BtfError {}

pub(super) const MAGIC: u16 = 0xeb9f;
pub(super) const VERSION: u8 = 1;
pub(super) const HEADER_LEN: usize = 24;
pub(super) const TYPE_LEN: usize = 12;
pub(super) const MEMBER_LEN: usize = 12;
pub(super) const PARAM_LEN: usize = 8;
/// eBPF runs on 64-bit kernels only.
pub(super) const POINTER_SIZE: u32 = 8;

pub(super) const INT: u8 = 1;
pub(super) const PTR: u8 = 2;
pub(super) const ARRAY: u8 = 3;
pub(super) const STRUCT: u8 = 4;
pub(super) const UNION: u8 = 5;
pub(super) const ENUM: u8 = 6;
pub(super) const FWD: u8 = 7;
pub(super) const TYPEDEF: u8 = 8;
pub(super) const VOLATILE: u8 = 9;
pub(super) const CONST: u8 = 10;
pub(super) const RESTRICT: u8 = 11;
pub(super) const FUNC: u8 = 12;
pub(super) const FUNC_PROTO: u8 = 13;
pub(super) const VAR: u8 = 14;
pub(super) const DATASEC: u8 = 15;
pub(super) const FLOAT: u8 = 16;
pub(super) const DECL_TAG: u8 = 17;
pub(super) const TYPE_TAG: u8 = 18;
pub(super) const ENUM64: u8 = 19;

/// A decoded `struct btf_type`.
#[derive(Clone, Copy)]
pub(super) struct Type {
    pub(super) name: u32,
    pub(super) kind: u8,
    pub(super) flag: bool,
    /// Number of members, values or parameters.
    pub(super) count: u32,
    pub(super) size_or_id: u32,
}

impl Type {
    pub(super) fn read(bytes: &[u8], at: usize) -> Option<Self> {
        let info = u32_at(bytes, at.checked_add(4)?)?;
        Some(Self {
            name: u32_at(bytes, at)?,
            // Kernels before 2026 use 16 bits for the count and 5 for the kind, and require the other bits
            // to be 0.
            kind: (info >> 24 & 0x7f) as u8,
            flag: info >> 31 == 1,
            count: info & 0x00ff_ffff,
            size_or_id: u32_at(bytes, at.checked_add(8)?)?,
        })
    }

    /// Bytes that follow the type's header. `None` for a kind that this reader does not know.
    pub(super) fn trailing_len(&self) -> Option<usize> {
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

    pub(super) fn has_members(&self) -> bool {
        matches!(self.kind, STRUCT | UNION)
    }
}

/// Byte ranges of the type and string sections.
pub(super) fn sections(bytes: &[u8]) -> Result<(Range<usize>, Range<usize>), BtfError> {
    let magic = bytes.first_chunk().map(|magic| u16::from_ne_bytes(*magic));
    match magic {
        Some(MAGIC) => {}
        Some(magic) if magic == MAGIC.swap_bytes() => {
            return Err(BtfError::Header("wrong byte order"));
        }
        _ => return Err(BtfError::Header("the magic number is missing")),
    }
    if bytes.get(2) != Some(&VERSION) {
        return Err(BtfError::Header("unsupported version (expected 1)"));
    }
    if u32::try_from(bytes.len()).is_err() {
        return Err(BtfError::Header("larger than 4 GiB"));
    }
    let field = |at| {
        u32_at(bytes, at)
            .map(|value| value as usize)
            .ok_or(BtfError::Header("the header is truncated"))
    };
    // Section offsets are relative to the end of the header. A newer header may be longer.
    let header_len = field(4)?;
    if header_len < HEADER_LEN {
        return Err(BtfError::Header("the header is too short"));
    }
    let section = |offset: usize, len: usize| {
        let start = header_len.checked_add(offset)?;
        let end = start.checked_add(len)?;
        (end <= bytes.len()).then_some(start..end)
    };
    let types =
        section(field(8)?, field(12)?).ok_or(BtfError::Header("the type section is truncated"))?;
    let strings = section(field(16)?, field(20)?)
        .ok_or(BtfError::Header("the string section is truncated"))?;
    Ok((types, strings))
}

/// In the byte order of this machine, on which the kernel runs.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*word))
}
