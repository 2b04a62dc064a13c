//! Text, times and numbers in the form that all documents use.

use std::borrow::Cow;

use jiff::Timestamp;
use rsttrace_model::escape::terminal;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// RFC 3339 in UTC with nine digits, from nanoseconds since the epoch.
pub fn timestamp(wall_ns: i64) -> String {
    Timestamp::from_nanosecond(i128::from(wall_ns))
        .map_or_else(|_| "1970-01-01T00:00:00.000000000Z".into(), |ts| format!("{ts:.9}"))
}

/// Escapes human-readable text, which may contain the name of a process. Outside its JSON string such a name
/// must not move a cursor. Fields that hold only such a name are not escaped.
pub fn sentence(text: &str) -> String {
    terminal(text)
}

/// A measured time in seconds, to the millisecond. It always has a decimal point, so that an index that
/// derives the type from the first value does not choose an integer type.
pub fn measured(seconds: f64) -> f64 {
    // Adding zero removes the sign of a negative zero.
    (seconds * 1000.0).round() / 1000.0 + 0.0
}

/// A configured time in seconds: an integer where it is whole, otherwise to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds(pub f64);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rounded = (self.0 * 1000.0).round() / 1000.0;
        if rounded.fract() == 0.0 && rounded.abs() < 1e15 {
            #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
            serializer.serialize_i64(rounded as i64)
        } else {
            serializer.serialize_f64(rounded)
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        f64::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number"})
    }
}
