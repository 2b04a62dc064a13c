//! The data of a report. The JSON output is [`Report`] serialized without changes.

use std::{borrow::Cow, net::SocketAddr};

use jiff::Timestamp;
use rsttrace_schema::json::timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::{
    parsed::{CauseCount, NotFix, ParsedFix},
    text::Text,
};

/// A time in nanoseconds since the epoch; in JSON an RFC 3339 timestamp, as in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Time {
    /// Formats the time in UTC with a strftime pattern such as `%H:%M:%S`.
    pub fn format(self, pattern: &str) -> String {
        Timestamp::from_nanosecond(i128::from(self.0))
            .map_or_else(|_| String::new(), |time| time.strftime(pattern).to_string())
    }

    /// "2026-11-21 03:21:44".
    pub fn full(self) -> String {
        self.format("%Y-%m-%d %H:%M:%S")
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&timestamp(self.0))
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(title = "rsttrace report")]
pub struct Report {
    /// Version of the JSON schema; a minor version only adds fields.
    pub schema: &'static str,
    pub rsttrace: &'static str,
    pub file: Text,
    /// `capture` or `ndjson`.
    pub input: &'static str,
    pub hosts: Vec<Text>,
    pub kernels: Vec<Text>,
    /// From the oldest to the newest event of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extent: Option<Extent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// The causes selected with `--cause`; empty for all.
    pub only: Vec<String>,
    pub headline: String,
    /// What happened, in one paragraph.
    pub summary: String,
    /// Broken connections, each counted once.
    pub connections: u64,
    /// Errors at the other ends of these connections, not counted in `connections`.
    pub other_ends: u64,
    /// Further resets and retries of connections that already have an incident.
    pub absorbed: u64,
    /// The cause that broke the most connections comes first.
    pub causes: Vec<CausePart>,
    pub benign: Vec<CauseCount>,
    pub services: Vec<ServicePart>,
    pub timeline: Vec<TimelineEntry>,
    pub broken: Vec<BrokenConnection>,
    /// Broken connections that `broken` does not list.
    pub not_listed: u64,
    /// `None` when the input holds no namespace states, as in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Vec<NamespaceCounters>>,
    pub conntrack_fill: Vec<Fill>,
    pub unseen: Gaps,
}

/// A cause, its connections and its fixes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CausePart {
    pub cause: Text,
    pub family: Text,
    /// The title of the cause; empty for a cause that this build does not know.
    pub title: &'static str,
    pub connections: u64,
    pub confidences: Vec<NameCount>,
    pub first: Time,
    pub last: Time,
    /// The busiest minute.
    pub peak: Peak,
    pub clients: Vec<NameCount>,
    pub servers: Vec<NameCount>,
    pub services: Vec<ServiceCount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    pub limits: Vec<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<KeepaliveOff>,
    /// The message of the example, the earliest incident with the highest confidence.
    pub message: Text,
    pub event_id: Text,
    /// The evidence of the example, oldest first.
    pub evidence: Vec<EvidenceLine>,
    pub ruled_out: Vec<RuledOutPart>,
    pub fixes: Vec<FixPart>,
    pub not_fixes: Vec<NotFix>,
    pub verify: Vec<Query>,
    /// The next test to confirm the cause, where the confidence is not `observed`.
    pub proves: Vec<NameCount>,
    /// Time of each broken connection in nanoseconds since the epoch, sorted, for the charts.
    #[serde(skip)]
    pub times: Vec<i64>,
    /// Known idle times before the failure in seconds, sorted, for the charts.
    #[serde(skip)]
    pub idle_s: Vec<f64>,
}

/// A time range, both ends included.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Extent {
    pub first: Time,
    pub last: Time,
}

impl Extent {
    /// The length in nanoseconds.
    pub fn long(self) -> i64 {
        self.last.0.saturating_sub(self.first.0)
    }
}

/// The number of connections to one service.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct ServiceCount {
    pub address: SocketAddr,
    pub connections: u64,
}

/// Sockets with SO_KEEPALIVE off, out of the sockets whose setting is known.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct KeepaliveOff {
    pub off: u64,
    pub known: u64,
}

/// The number of signals that were traced, out of all signals.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Covered {
    pub covered: usize,
    pub of: usize,
}

/// A name or a text, with the number of connections it applies to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NameCount {
    pub text: Text,
    pub connections: u64,
}

#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Peak {
    pub minute: Time,
    pub connections: u64,
}

/// Idle time before the failure, in seconds.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Idle {
    pub shortest_s: f64,
    pub median_s: f64,
    pub longest_s: f64,
    /// Connections whose idle time is known.
    pub known: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Limit {
    pub name: Text,
    pub limit_s: f64,
    pub connections: u64,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EvidenceLine {
    pub at: Time,
    pub text: Text,
    /// Whether this is the root cause.
    pub root: bool,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RuledOutPart {
    pub cause: Text,
    /// The reason given most often, and the number of connections it was given for.
    pub because: Text,
    pub connections: u64,
    /// Whether the same reason was also given with other numbers.
    pub numbers_differ: bool,
    pub other_reasons: usize,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FixPart {
    #[serde(flatten)]
    pub fix: ParsedFix,
    /// The number of connections whose incident lists the fix.
    pub connections: u64,
}

/// A query that verifies the fix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Query {
    pub with: &'static str,
    pub query: String,
    pub expected: String,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ServicePart {
    pub address: SocketAddr,
    pub backends: Vec<SocketAddr>,
    pub clients: Vec<NameCount>,
    pub servers: Vec<NameCount>,
    pub connections: u64,
    pub peak: Peak,
    pub minutes: Vec<Minute>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Minute {
    pub minute: Time,
    pub causes: Vec<CauseCount>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TimelineEntry {
    pub at: Time,
    pub text: String,
    /// Whether this is the root cause of a cause's example.
    pub root: bool,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct BrokenConnection {
    pub at: Time,
    pub cause: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Text>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<f64>,
    pub event_id: Text,
}

/// The counters of one network namespace at two times.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NamespaceCounters {
    pub netns: u32,
    /// The namespace in words: "on the host", "in netns web".
    pub place: Text,
    pub before: Time,
    pub after: Time,
    /// Only counters whose value changed.
    pub changed: Vec<Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Counter {
    pub name: &'static str,
    pub before: u64,
    pub after: u64,
}

/// How full the conntrack table of one network namespace was.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Fill {
    pub place: Text,
    pub readings: Vec<Reading>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reading {
    pub at: Time,
    pub entries: u32,
    pub max: u32,
}

impl Reading {
    /// Entries divided by the maximum; 1.0 is full.
    pub fn share(&self) -> f64 {
        f64::from(self.entries) / f64::from(self.max)
    }
}

impl Fill {
    /// The reading with the highest share.
    pub fn peak(&self) -> Option<&Reading> {
        self.readings.iter().max_by(|a, b| a.share().total_cmp(&b.share()))
    }
}

/// What may be missing from the report.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Gaps {
    /// What the tracer could not see.
    pub blind_spots: Vec<Text>,
    /// Coverage when the capture ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signals: Option<Covered>,
    /// Kernel records lost in the ring buffer, records that could not be decoded, and records of ended
    /// entries that were evicted.
    pub lost_events: u64,
    pub unreadable: u64,
    pub forgotten: u64,
    /// The number of damaged lines of the file, and messages for the first ones with their place.
    pub damaged: u64,
    pub damage: Vec<String>,
    /// Other gaps, one sentence each.
    pub notes: Vec<String>,
}

impl Gaps {
    /// Whether no gap is known.
    pub fn is_empty(&self) -> bool {
        self.blind_spots.is_empty()
            && self.lost_events + self.unreadable + self.forgotten + self.damaged == 0
            && self.damage.is_empty()
            && self.notes.is_empty()
    }
}
