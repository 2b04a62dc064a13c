//! The machine-readable documents. Each has one serde type, which writes, reads and describes it.

pub mod envelope;
pub mod fix;
pub mod incident;
pub mod json;
pub mod summary;
pub mod text;

#[cfg(test)]
mod tests;

use schemars::{JsonSchema, generate::SchemaSettings};

/// The JSON Schema (2020-12) of a document as it is written: fields that are always written are required.
pub fn schema_of<T: JsonSchema>() -> serde_json::Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<T>().into()
}
