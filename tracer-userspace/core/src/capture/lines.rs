//! Lines of an untrusted file. Memory is limited by the longest line that is read, whatever the file claims.

use std::io::{self, BufRead, Read as _};

/// How the next line ended.
pub enum Line {
    Whole,
    TooLong,
    /// The last line, without a line end.
    Cut,
    None,
}

/// Reads lines, at most `max_len` bytes of each.
pub struct Lines<R> {
    input: R,
    max_len: u64,
    /// Number of the last line, counted from 1.
    pub number: u64,
    /// Bytes of the last line, without the line end.
    pub bytes: Vec<u8>,
    /// The last line was too long, and its rest is not skipped yet.
    in_mid_line: bool,
}

impl<R: BufRead> Lines<R> {
    /// `max_len` is the longest line that is read, in bytes.
    pub fn new(input: R, max_len: u64) -> Self {
        Self { input, max_len, number: 0, bytes: Vec::new(), in_mid_line: false }
    }

    /// Reads a line into the buffer.
    ///
    /// # Errors
    /// Those of the input.
    pub fn read(&mut self) -> io::Result<Line> {
        if std::mem::take(&mut self.in_mid_line) {
            self.input.skip_until(b'\n')?;
        }
        self.number += 1;
        self.bytes.clear();
        let read = (&mut self.input).take(self.max_len).read_until(b'\n', &mut self.bytes)?;
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
            return Ok(Line::Whole);
        }
        if read as u64 == self.max_len {
            self.in_mid_line = true;
            return Ok(Line::TooLong);
        }
        Ok(if read == 0 { Line::None } else { Line::Cut })
    }
}
