//! `rsttrace report`: what happened, told to somebody who was not there.
//!
//! Events come in ([`input`]: a capture, replayed, or a stream), are gathered while they are read
//! ([`gather`]), become a [`model::Report`] ([`conclude`], [`story`], [`timeline`], [`verify`]), and are
//! shown ([`markdown`], [`html`], [`json`]). Both kinds of input tell their incidents as events of the
//! contract, so that they give the same report.
//!
//! Pure but for the reader that is handed in. Everything from the file is hostile: [`text::Text`] makes
//! it harmless for a terminal as it comes in, and each renderer escapes it for its own format.

mod chart;
mod conclude;
mod counters;
mod gather;
pub mod html;
mod input;
pub mod json;
pub mod markdown;
pub mod model;
mod runs;
mod say;
mod story;
mod text;
mod timeline;
mod told;
mod verify;
mod window;
mod words;

use std::io::BufRead;

use rsttrace_core::capture::CaptureError;

pub use gather::Selection;
pub use input::Input;
pub use window::{When, Window};

/// Reads a file and reports on what is selected of it. `say` is told of each damaged line.
///
/// # Errors
/// When the file is neither a capture nor a stream of events.
pub fn report(
    file: &str,
    input: impl BufRead,
    selection: Selection,
    say: &mut dyn FnMut(&str),
) -> Result<model::Report, CaptureError> {
    let mut gather = gather::Gather::new(selection);
    let input = input::read(file.into(), input, &mut gather, say)?;
    Ok(gather.report(input))
}
