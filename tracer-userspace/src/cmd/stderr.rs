//! Standard error. A message that cannot be written is dropped and does not end the command.

use std::io::{self, Write as _};

/// Writes one or more lines; an empty text writes nothing.
pub fn say(text: &str) {
    if text.is_empty() {
        return;
    }
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // There is no other place to report the failure.
    let _ = io::stderr().write_all(format!("{text}{end}").as_bytes());
}
