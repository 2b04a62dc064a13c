//! The report, ready to be shown. Its JSON is [`Report`] as it stands.

use std::net::SocketAddr;

use jiff::Timestamp;
use rsttrace_schema::json::timestamp;
use serde::{Serialize, Serializer};

use super::{
    counters::{Fill, NamespaceCounters},
    text::Text,
    told::{CauseCount, FixTold, NotFix},
};

/// A moment, nanoseconds since the epoch; in JSON as events have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Time {
    /// `%H:%M:%S` and the like, in UTC.
    pub fn format(self, how: &str) -> String {
        Timestamp::from_nanosecond(i128::from(self.0))
            .map_or_else(|_| String::new(), |time| time.strftime(how).to_string())
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

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this shape; minors only add.
    pub schema: &'static str,
    pub rsttrace: &'static str,
    pub file: Text,
    /// `capture` or `ndjson`.
    pub input: &'static str,
    pub hosts: Vec<Text>,
    pub kernels: Vec<Text>,
    /// The oldest and the newest event of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extent: Option<Extent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// The causes that were asked for; none for all.
    pub only: Vec<String>,
    pub headline: String,
    /// What happened, in a paragraph.
    pub summary: String,
    /// Broken connections, each counted once.
    pub connections: u64,
    /// Errors at the other ends of these connections.
    pub other_ends: u64,
    /// Resets and retries of connections already told.
    pub absorbed: u64,
    /// The one that broke most connections first.
    pub causes: Vec<CausePart>,
    pub benign: Vec<CauseCount>,
    pub services: Vec<ServicePart>,
    pub timeline: Vec<Moment>,
    pub broken: Vec<Broken>,
    /// Broken connections beyond the listed ones.
    pub not_listed: u64,
    /// `None` where the input holds none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Vec<NamespaceCounters>>,
    pub conntrack_fill: Vec<Fill>,
    pub unseen: Unseen,
}

/// A cause and what is to be done about it.
#[derive(Clone, Debug, Serialize)]
pub struct CausePart {
    pub cause: Text,
    pub family: Text,
    /// What it is, in a line; empty for a cause that this build does not know.
    pub title: &'static str,
    pub connections: u64,
    pub confidences: Vec<Said>,
    pub first: Time,
    pub last: Time,
    /// The busiest minute.
    pub peak: Peak,
    pub clients: Vec<Said>,
    pub servers: Vec<Said>,
    pub services: Vec<Toward>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    pub limits: Vec<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<KeepaliveOff>,
    /// The message of the example.
    pub message: Text,
    pub event_id: Text,
    /// What was seen of the example, oldest first.
    pub evidence: Vec<Seen>,
    pub ruled_out: Vec<RuledOutPart>,
    pub fixes: Vec<FixPart>,
    pub not_fixes: Vec<NotFix>,
    pub verify: Vec<Query>,
    /// The next test, where the verdict is not `observed`.
    pub proves: Vec<Said>,
    /// Of each connection, for the charts.
    #[serde(skip)]
    pub times: Vec<i64>,
    #[serde(skip)]
    pub idle_s: Vec<f64>,
}

/// From the first to the last.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Extent {
    pub first: Time,
    pub last: Time,
}

impl Extent {
    /// Nanoseconds.
    pub fn long(self) -> i64 {
        self.last.0.saturating_sub(self.first.0)
    }
}

/// Connections to a service.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Toward {
    pub address: SocketAddr,
    pub connections: u64,
}

/// Sockets with SO_KEEPALIVE off, and those of which it is known.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KeepaliveOff {
    pub off: u64,
    pub known: u64,
}

/// Signals covered, of how many.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Covered {
    pub covered: usize,
    pub of: usize,
}

/// Something that was said of so many connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    pub text: Text,
    pub connections: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peak {
    pub minute: Time,
    pub connections: u64,
}

/// Silence before the reset, seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    pub shortest_s: f64,
    pub median_s: f64,
    pub longest_s: f64,
    /// Connections of which it is known.
    pub known: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    pub name: Text,
    pub limit_s: f64,
    pub connections: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    pub at: Time,
    pub text: Text,
    /// It is the root cause.
    pub root: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct RuledOutPart {
    pub cause: Text,
    /// The reason given most often, and how often.
    pub because: Text,
    pub connections: u64,
    /// It was given with other numbers, too.
    pub numbers_differ: bool,
    pub other_reasons: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct FixPart {
    #[serde(flatten)]
    pub fix: FixTold,
    /// For how many connections it was named.
    pub connections: u64,
}

/// How to see that it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Query {
    pub with: &'static str,
    pub query: String,
    pub expected: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServicePart {
    pub address: SocketAddr,
    pub backends: Vec<SocketAddr>,
    pub clients: Vec<Said>,
    pub servers: Vec<Said>,
    pub connections: u64,
    pub peak: Peak,
    pub minutes: Vec<Minute>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Minute {
    pub minute: Time,
    pub causes: Vec<CauseCount>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    pub at: Time,
    pub text: String,
    /// It is a root cause, or the first of its kind.
    pub root: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Broken {
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

/// What the report cannot know.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Unseen {
    /// What was invisible to the tracer.
    pub blind_spots: Vec<Text>,
    /// As the capture ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signals: Option<Covered>,
    /// Kernel records lost, records unreadable, losses forgotten.
    pub lost_events: u64,
    pub unreadable: u64,
    pub forgotten: u64,
    /// Lines of the file that cannot be read, and the first of them by place.
    pub damaged: u64,
    pub damage: Vec<String>,
    /// Everything else, in sentences.
    pub notes: Vec<String>,
}

impl Unseen {
    /// Everything was seen.
    pub fn is_empty(&self) -> bool {
        self.blind_spots.is_empty()
            && self.lost_events + self.unreadable + self.forgotten + self.damaged == 0
            && self.damage.is_empty()
            && self.notes.is_empty()
    }
}
