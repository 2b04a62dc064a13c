//! Standard output. A closed pipe is not an error; any other failure is.

use std::io::{self, ErrorKind, Write as _};

use anyhow::Context as _;

/// Writes and flushes, so that the reader of a pipe does not wait for a full buffer. Returns `false` when the
/// reader has exited.
///
/// # Errors
/// When standard output cannot be written for any other reason, such as a full disk.
pub fn write(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}
