//! Standard output, where a closed pipe is no failure and everything else is.

use std::io::{self, ErrorKind, Write as _};

use anyhow::Context as _;

/// Writes at once: a reader of the pipe must not wait for a buffer to fill. `false` when nobody reads
/// any more.
///
/// # Errors
/// When it cannot be written for any other reason, such as a full disk.
pub fn write(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}
