//! The fields that every event has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the Elastic Common Schema that defines the names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Ecs {
    pub version: String,
}

impl Ecs {
    pub(crate) fn current() -> Self {
        Self { version: "8.11.0".into() }
    }
}

/// The node of the event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Host {
    pub name: String,
}
