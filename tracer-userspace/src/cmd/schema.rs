//! `rsttrace schema`: the JSON Schema of a document.

use rsttrace_report::model::Report;
use rsttrace_schema::{check, incident, plan, schema_of, summary};
use serde_json::{Value, json};

use super::{Exit, Failure, stdout};
use crate::cli::{Document, SchemaArgs};

/// Prints the schema of one document.
///
/// # Errors
/// [`Failure`] when standard output cannot be written.
pub fn run(args: &SchemaArgs) -> Result<Exit, Failure> {
    let schema = of(args.document);
    stdout::write(&(serde_json::to_string_pretty(&schema).map_err(anyhow::Error::from)? + "\n"))?;
    Ok(Exit::Fine)
}

/// The schema of a document, with an example of a real run.
pub fn of(document: Document) -> Value {
    let (mut schema, example) = match document {
        Document::Incident => {
            (schema_of::<incident::Incident>(), include_str!("schema/incident.json"))
        }
        Document::Summary => (schema_of::<summary::Summary>(), include_str!("schema/summary.json")),
        Document::Check => (schema_of::<check::Line>(), include_str!("schema/check.json")),
        Document::Plan => (schema_of::<plan::Plan>(), include_str!("schema/plan.json")),
        Document::Report => (schema_of::<Report>(), include_str!("schema/report.json")),
    };
    if let Ok(example) = serde_json::from_str::<Value>(example) {
        schema["examples"] = json!([example]);
    }
    schema
}
