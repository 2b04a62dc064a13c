//! The report as one JSON object.

use super::model::Report;

/// Renders the report as indented JSON, because people read it as well.
///
/// # Errors
/// Those of the serializer.
pub fn render(report: &Report) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}
