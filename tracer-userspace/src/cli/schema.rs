//! The arguments of `schema`.

use clap::{Args, ValueEnum};

/// Print the JSON Schema (2020-12) of what rsttrace prints as JSON
///
/// Each schema describes what this build writes, and holds an example of a real run. Version 1.x of a
/// document only adds fields, so a reader of 1.0 reads them all.
#[derive(Args, Debug)]
pub struct SchemaArgs {
    /// The document
    #[arg(value_enum, default_value = "incident")]
    pub document: Document,
}

/// A document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Document {
    /// One broken connection: a line of `live -o json` and `replay -o json`
    Incident,
    /// What a run has counted: a line of the same streams
    Summary,
    /// A line of `check -o json`: a finding, or the summary at the end
    Check,
    /// The object of `plan -o json`
    Plan,
    /// The object of `report -o json`
    Report,
}
