//! Follows a path of member names and array indices to a member.

use super::{Btf, MAX_DEPTH, Member, TypeId, format::*, is_named};

/// Most members visited for one path component. The kernel's largest structs have hundreds. Without this
/// limit a few nested anonymous structs could cost exponential time.
const MAX_MEMBERS_VISITED: u32 = 1 << 16;

/// A member as found by name, before its size is known.
#[derive(Clone, Copy)]
struct Place {
    type_id: TypeId,
    bit_offset: u64,
    bitfield: bool,
}

impl Btf {
    /// Follows `path` from the type `owner`. A component is a member name, also one inside anonymous structs
    /// and unions, or a decimal array index. An array without an index means its first element where a
    /// member name follows. Pointers are not followed. An empty path is the type itself.
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

    /// Size in bytes. `None` for a type without a size (`void`, functions) or with one above `u32::MAX`.
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
            // C treats the members of an anonymous struct or union as members of its owner. Bitfield padding
            // has no name either, but no members.
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

    /// Decodes a member's position. It has one format in structs with bitfields (the flag) and another in all
    /// other structs, where an old compiler may still have encoded a bitfield in the type.
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
}
