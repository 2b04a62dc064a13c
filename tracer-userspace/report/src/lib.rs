//! `rsttrace report`: a post-incident report for readers who were not there.
//!
//! [`input`] reads events from a capture, which is replayed, or from a stream. [`gather`] counts them while
//! they are read. [`conclude`], [`summary`], [`timeline`] and [`verify`] turn the counts into a
//! [`model::Report`], and [`markdown`], [`html`] and [`json`] render it. Both kinds of input pass their
//! incidents on as events of the contract, so both give the same report.
//!
//! Pure except for the reader that is passed in. Everything in the file is hostile: [`text::Text`] makes it
//! harmless for a terminal on input, and each renderer escapes it for its own format.

mod chart;
mod conclude;
mod counters;
mod format;
mod gather;
pub mod html;
mod input;
pub mod json;
pub mod markdown;
pub mod model;
mod parsed;
mod runs;
mod sentences;
mod summary;
mod text;
mod timeline;
mod verify;
mod window;

use std::io::BufRead;

use rsttrace_core::capture::CaptureError;

pub use gather::Selection;
pub use input::Input;
pub use window::{When, Window};

/// Reads a file and reports on the selected part of it. Calls `warn` with one message for each damaged
/// line, up to ten.
///
/// # Errors
/// When the file is neither a capture nor a stream of events.
pub fn report(
    file: &str,
    input: impl BufRead,
    selection: Selection,
    warn: &mut dyn FnMut(&str),
) -> Result<model::Report, CaptureError> {
    let mut gather = gather::Gather::new(selection);
    let input = input::read(file.into(), input, &mut gather, warn)?;
    Ok(gather.report(input))
}
