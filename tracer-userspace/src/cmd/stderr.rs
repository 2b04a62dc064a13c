//! Standard error, which nobody may be reading: a message that cannot be told ends nothing.

use std::io::{self, Write as _};

/// Writes a line, or several with their line ends, or nothing.
pub fn say(text: &str) {
    if text.is_empty() {
        return;
    }
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // There is no other place to complain.
    let _ = io::stderr().write_all(format!("{text}{end}").as_bytes());
}
