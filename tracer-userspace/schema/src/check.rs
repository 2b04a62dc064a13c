//! The lines of `rsttrace check -o json`: one for each finding, and a summary last.

use schemars::JsonSchema;
use serde::Serialize;

use crate::fix::Fix;

/// One line.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(title = "rsttrace check")]
pub enum Line {
    Finding(Box<Finding>),
    Summary(Box<Summary>),
}

/// One thing that is wrong, or will be.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Finding {
    #[schemars(extend("const" = "rsttrace.finding"))]
    pub dataset: &'static str,
    #[schemars(extend("enum" = ["break", "warn", "info"]))]
    pub rank: &'static str,
    /// Id of the rule.
    pub rule: &'static str,
    /// The cause that an incident would name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The same for people.
    pub place: String,
    pub reason: String,
    /// The connection breaks when it has been idle for so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_s: Option<u64>,
    /// The rule with its numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formula: Option<String>,
    /// Who can change it.
    pub owner: &'static str,
    /// Where the value comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Some of the connections that the finding concerns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<String>,
    /// The first is what we would do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
}

/// What was checked.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Summary {
    #[schemars(extend("const" = "rsttrace.check"))]
    pub dataset: &'static str,
    /// Version of this schema; a minor version only adds.
    #[schemars(regex(pattern = r"^1\.[0-9]+$"))]
    pub schema: &'static str,
    /// Release of the kernel.
    pub kernel: String,
    pub cpus: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram_bytes: Option<u64>,
    /// Inode numbers of the network namespaces that were checked.
    pub netns: Vec<u32>,
    /// Number of findings by rank.
    #[serde(rename = "break")]
    pub breaks: usize,
    pub warn: usize,
    pub info: usize,
    /// The path that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Every idle limit on that path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hops: Option<Vec<Hop>>,
    /// What could not be read.
    pub unseen: Vec<NotRead>,
}

/// An idle limit on a path.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Hop {
    pub what: String,
    pub limit: String,
    /// The limit in seconds; absent for what keeps the connection, and for what may not be on the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    pub owner: String,
    pub source: String,
}

/// Something that could not be read, and why.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NotRead {
    pub what: String,
    pub why: String,
}
