//! Lines of `-o json`, and parts of other documents.

use rsttrace_core::{fix, incident, summary};
use serde::Serialize;
use serde_json::{Map, Value};

pub use crate::text::timestamp;
use crate::{fix::Fix, incident::Incident, summary::Summary};

/// One line for one incident, without the line end.
pub fn incident(incident: &incident::Incident) -> String {
    Incident::from(incident).line()
}

/// One line with the counts so far.
pub fn summary(summary: &summary::Summary, wall_ns: i64) -> String {
    Summary::new(summary, wall_ns).line()
}

/// One line for a document.
pub fn line(document: &impl Serialize) -> String {
    // Only maps without text keys fail, and no document has one.
    serde_json::to_string(document).unwrap_or_default()
}

/// A line, indented for reading.
pub fn pretty(line: &str) -> String {
    serde_json::from_str::<Value>(line)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| line.to_owned())
}

/// [`crate::text::sentence`] as a value.
pub fn sentence(text: &str) -> Value {
    crate::text::sentence(text).into()
}

/// An object without the absent values.
pub fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect::<Map<_, _>>()
        .into()
}

/// A list of texts; an empty one is absent.
pub fn strings(values: Vec<String>) -> Option<Value> {
    (!values.is_empty()).then(|| values.into_iter().map(Value::from).collect())
}

/// A fix with its commands.
pub fn fix(fix: &fix::Fix) -> Value {
    serde_json::to_value(Fix::from(fix)).unwrap_or_default()
}
