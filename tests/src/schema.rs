//! The JSON Schemas that the tracer under test prints, against which every line of it is validated.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use jsonschema::Validator;
use serde_json::Value;

/// The schemas of the lines of `live -o json`.
pub struct Schemas {
    incident: Validator,
    summary: Validator,
}

impl Schemas {
    pub fn of(program: &Path) -> Result<Self> {
        Ok(Self {
            incident: validator(program, "incident")?,
            summary: validator(program, "summary")?,
        })
    }

    /// What is wrong with a line.
    pub fn violation(&self, line: &Value) -> Option<String> {
        let validator = match line["event"]["dataset"].as_str() {
            Some("rsttrace.incident") => &self.incident,
            Some("rsttrace.summary") => &self.summary,
            other => return Some(format!("unknown event.dataset {other:?}")),
        };
        let error = validator.iter_errors(line).next()?;
        Some(format!("{error} at {}", error.instance_path()))
    }
}

fn validator(program: &Path, document: &str) -> Result<Validator> {
    let printed = Command::new(program)
        .args(["schema", document])
        .output()
        .with_context(|| format!("run {} schema {document}", program.display()))?;
    ensure!(printed.status.success(), "`rsttrace schema {document}` ended with {}", printed.status);
    let schema = serde_json::from_slice(&printed.stdout)
        .with_context(|| format!("`rsttrace schema {document}` printed no JSON"))?;
    jsonschema::validator_for(&schema)
        .with_context(|| format!("`rsttrace schema {document}` printed no JSON Schema"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_missing_field_or_another_dataset_is_a_violation() {
        let schema = serde_json::json!({"type": "object", "required": ["level"]});
        let validator = || jsonschema::validator_for(&schema).expect("a schema");
        let schemas = Schemas { incident: validator(), summary: validator() };
        let line = |text: &str| schemas.violation(&serde_json::from_str(text).expect("JSON"));
        assert_eq!(line(r#"{"level":"info","event":{"dataset":"rsttrace.incident"}}"#), None);
        assert!(line(r#"{"event":{"dataset":"rsttrace.incident"}}"#).is_some());
        assert!(line(r#"{"level":"info","event":{"dataset":"other"}}"#).is_some());
    }
}
