//! Lines of a file that may hold anything: nothing that it claims is ever allocated.

use std::io::{self, BufRead, Read as _};

/// How the next line ended.
pub enum Line {
    Whole,
    TooLong,
    /// The last one has no end.
    Cut,
    None,
}

/// Line by line, no more of each than one can have.
pub struct Lines<R> {
    input: R,
    most: u64,
    /// The last line, counted from 1.
    pub number: u64,
    /// Its bytes, without the end.
    pub bytes: Vec<u8>,
    /// The rest of it was too long and is still to be passed over.
    in_mid_line: bool,
}

impl<R: BufRead> Lines<R> {
    /// `most` is the longest line that is read, in bytes.
    pub fn new(input: R, most: u64) -> Self {
        Self { input, most, number: 0, bytes: Vec::new(), in_mid_line: false }
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
        let read = (&mut self.input).take(self.most).read_until(b'\n', &mut self.bytes)?;
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
            return Ok(Line::Whole);
        }
        if read as u64 == self.most {
            self.in_mid_line = true;
            return Ok(Line::TooLong);
        }
        Ok(if read == 0 { Line::None } else { Line::Cut })
    }
}
