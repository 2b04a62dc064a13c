//! Whether a rule distinguishes packets of connections that conntrack knows from others.

use std::io;

use super::{
    expression::{NFT_CT_STATE, each},
    xtables,
};

/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)` and `NF_CT_STATE_BIT(IP_CT_NEW)`: 1 shifted by the value plus one
/// (include/uapi/linux/netfilter/nf_conntrack_common.h).
pub(super) const ESTABLISHED_OR_NEW: u32 = 1 << 1 | 1 << 3;

/// Whether the expressions test the conntrack state, and not only for INVALID.
pub(super) fn tests_state(expressions: &[u8]) -> io::Result<bool> {
    // The register that holds the state, until a mask shows which states are meant.
    let mut state = None;
    for expression in each(expressions) {
        let (name, it) = expression?;
        match name.as_str() {
            "ct" if it.number(2)? == NFT_CT_STATE && it.bytes(1).is_some() => {
                state = Some(it.number(1)?);
            }
            "bitwise" if state == Some(it.number(1)?) => {
                if it.word(4)? & ESTABLISHED_OR_NEW != 0 {
                    return Ok(true);
                }
                state = None;
            }
            // A set or a single value: only a mask excludes the states of packets that conntrack knows.
            "cmp" if state == Some(it.number(1)?) => return Ok(true),
            "lookup" if state == Some(it.number(2)?) => return Ok(true),
            "match" => {
                let info = it.bytes(3).unwrap_or_default();
                if xtables::tests_state(&it.text(1), it.number(2)?, info)? {
                    return Ok(true);
                }
            }
            _ => {}
        }
    }
    Ok(false)
}
