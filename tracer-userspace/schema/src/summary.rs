//! The counts of a run, as one JSON object.

use std::collections::BTreeMap;

use rsttrace_core::{
    correlator::event_id::summary_id,
    summary::{self, summary_text},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    envelope::{Ecs, Host},
    incident::VERSION,
    json,
    text::timestamp,
};

/// The counters of a run so far: every 60 s and at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "rsttrace summary")]
pub struct Summary {
    /// RFC 3339, UTC, nine digits.
    #[serde(rename = "@timestamp")]
    #[schemars(extend("format" = "date-time"))]
    pub timestamp: String,
    #[serde(default)]
    #[schemars(extend("const" = "info"))]
    pub level: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub event_id: String,
    #[serde(default)]
    pub ecs: Ecs,
    #[serde(default)]
    pub event: SummaryEvent,
    #[serde(default)]
    pub host: Host,
    pub rsttrace: Counted,
}

/// ECS `event.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SummaryEvent {
    /// The same as `event_id`.
    pub id: String,
    #[schemars(extend("const" = "metric"))]
    pub kind: String,
    pub category: Vec<String>,
    #[serde(rename = "type")]
    pub kinds: Vec<String>,
    #[schemars(extend("const" = "rsttrace"))]
    pub module: String,
    #[schemars(extend("const" = "rsttrace.summary"))]
    pub dataset: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counted {
    /// Version of this schema.
    #[serde(default)]
    #[schemars(regex(pattern = r"^1\.[0-9]+$"))]
    pub schema: String,
    pub summary: Counts,
    /// Records lost since the start of the run.
    #[serde(default)]
    pub lost_events: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Counts {
    /// Broken connections by cause; repeats at a connection's other end do not count.
    pub incidents: Vec<CauseCount>,
    /// Benign resets by cause.
    pub benign: Vec<CauseCount>,
    /// Resets and repeats that belong to an incident that is already printed.
    pub absorbed: u64,
    /// Losses that were evicted because their store was full.
    pub forgotten: u64,
    /// Kernel reads that failed, and records that could not be decoded.
    pub unreadable: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CauseCount {
    pub cause: String,
    pub count: u64,
}

impl Summary {
    /// The counts at a time, nanoseconds since the epoch.
    pub fn new(summary: &summary::Summary, wall_ns: i64) -> Self {
        let counts = |list: &BTreeMap<&'static str, u64>| {
            list.iter()
                .map(|(cause, count)| CauseCount { cause: (*cause).into(), count: *count })
                .collect()
        };
        let id = summary_id(&summary.boot_id, wall_ns);
        Self {
            timestamp: timestamp(wall_ns),
            level: "info".into(),
            message: summary_text(summary),
            event_id: id.clone(),
            ecs: Ecs::current(),
            event: SummaryEvent {
                id,
                kind: "metric".into(),
                category: vec!["network".into()],
                kinds: vec!["info".into()],
                module: "rsttrace".into(),
                dataset: "rsttrace.summary".into(),
            },
            host: Host { name: summary.hostname.clone() },
            rsttrace: Counted {
                schema: VERSION.into(),
                summary: Counts {
                    incidents: counts(&summary.incidents),
                    benign: counts(&summary.benign),
                    absorbed: summary.counters.absorbed,
                    forgotten: summary.counters.evicted,
                    unreadable: summary.unreadable,
                },
                lost_events: summary.counters.lost,
            },
        }
    }

    /// One line, without the line end.
    pub fn line(&self) -> String {
        json::line(self)
    }
}
