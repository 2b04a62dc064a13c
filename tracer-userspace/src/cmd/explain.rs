//! `rsttrace explain [CAUSE]`: what a cause is, how it is recognised, what fixes it and what does not.

use rsttrace_core::causes;
use rsttrace_schema::json;

use super::{Exit, Failure, stdout};
use crate::{
    cli::{ExplainArgs, PageFormat, page_width},
    render::explain,
};

/// Prints the documentation of one cause, or the list of all.
///
/// # Errors
/// [`Failure`] when standard output cannot be written.
pub fn run(args: &ExplainArgs) -> Result<Exit, Failure> {
    let causes: Vec<_> = match &args.cause {
        Some(cause) => causes::by_id(cause).into_iter().collect(),
        None => causes::ALL.iter().collect(),
    };
    let text = match (args.page.output, causes.as_slice()) {
        (PageFormat::Text, [cause]) => {
            explain::text(cause, args.page.color.on_stdout(), page_width())
        }
        (PageFormat::Text, _) => explain::list(args.page.color.on_stdout(), page_width()),
        (PageFormat::Json, _) => {
            causes.iter().map(|cause| explain::json(cause).to_string() + "\n").collect()
        }
        (PageFormat::JsonPretty, _) => causes
            .iter()
            .map(|cause| json::pretty(&explain::json(cause).to_string()) + "\n")
            .collect(),
    };
    stdout::write(&text)?;
    Ok(Exit::Fine)
}
