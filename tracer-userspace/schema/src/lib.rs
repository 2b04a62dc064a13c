//! The machine-readable documents. Each has one serde type, which writes, reads and describes it.

pub mod check;
pub mod envelope;
pub mod fix;
pub mod incident;
pub mod json;
pub mod plan;
pub mod summary;
pub mod text;

#[cfg(test)]
mod tests;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

/// The JSON Schema (2020-12) of a document as it is written: what is always there is required, and what
/// may be missing is absent, never null.
pub fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema: Value = settings.into_generator().into_root_schema_for::<T>().into();
    as_written(&mut schema);
    let Value::Object(mut keys) = schema else {
        return schema;
    };
    // What a person looks for comes first.
    let mut ordered = Map::new();
    for key in ["$schema", "title", "description"] {
        ordered.extend(keys.shift_remove(key).map(|value| (key.to_owned(), value)));
    }
    ordered.extend(keys);
    ordered.into()
}

/// Takes out what only a reader needs: defaults for missing fields, and null for absent ones.
fn as_written(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(as_written),
        Value::Object(keys) => {
            if keys.get("properties").is_none_or(|it| !it.is_object()) {
                keys.shift_remove("default");
            }
            if let Some(Value::Array(types)) = keys.get_mut("type") {
                types.retain(|it| it != "null");
                if let [only] = types.as_slice() {
                    keys["type"] = only.clone();
                }
            }
            if let Some(Value::Array(choices)) = keys.get_mut("anyOf") {
                choices.retain(|it| it["type"] != "null");
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    keys.shift_remove("anyOf");
                    keys.extend(only);
                }
            }
            keys.values_mut().for_each(as_written);
        }
        _ => {}
    }
}
