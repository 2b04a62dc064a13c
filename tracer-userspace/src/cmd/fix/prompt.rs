//! A yes-or-no prompt on the terminal.

use std::io::{Write as _, stderr, stdin};

/// Prompts on standard error. Only `y` and `yes` confirm.
pub fn confirm(question: &str) -> bool {
    // If the prompt cannot be written, nothing is confirmed either.
    let _ = write!(stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = stdin().read_line(&mut answer).is_ok();
    read && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}
