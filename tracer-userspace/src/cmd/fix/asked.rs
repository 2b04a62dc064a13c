//! A question to whoever sits at the terminal.

use std::io::{Write as _, stderr, stdin};

/// Asks on standard error; anything but yes is no.
pub fn agrees(question: &str) -> bool {
    // Where it cannot be read, it is not answered either.
    let _ = write!(stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = stdin().read_line(&mut answer).is_ok();
    read && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}
