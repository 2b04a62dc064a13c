//! Escapes untrusted text for a terminal.

use std::fmt::Write as _;

/// Escapes what can move the cursor, change colours or reorder a line: control characters, and the
/// invisible and bidirectional format characters of Unicode.
pub fn terminal(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_format(c) {
            // Writing to a String cannot fail.
            let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Zero-width and bidirectional characters (Unicode category Cf, the ranges that terminals interpret).
fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// Whether text is safe in a command: `[A-Za-z0-9._:/-]+`.
pub fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escape_sequence_in_a_process_name_reaches_no_terminal() {
        assert_eq!(terminal("\u{1b}[2Jx\u{9b}m\r"), "\\u{1b}[2Jx\\u{9b}m\\u{d}");
    }

    #[test]
    fn a_bidi_override_is_made_visible() {
        assert_eq!(terminal("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn plain_text_in_any_script_stays() {
        assert_eq!(terminal("mysqld größe 数据"), "mysqld größe 数据");
    }
}
