//! Builds BTF for tests.

use super::{format::*, *};

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
